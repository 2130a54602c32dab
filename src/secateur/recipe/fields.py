"""Tables of a recipe for data, network, training and the scan."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class Part(BaseModel):
    """A part of a recipe: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Part):
    """The images, and how they are split and normalized.

    Every draw uses ``split_seed`` and is stratified by class. Validation and test labels are never
    changed.
    """

    name: Literal["cifar10", "fashionmnist", "fashionmnist-mini", "folder", "shards"] = Field(
        description="Data set; below --data, `folder` reads train/CLASS/*, val/CLASS/* and "
        "test/CLASS/*, or CLASS/*, and `shards` streams train-*.tar or .parquet and so on."
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2,
        description="Fraction of the training images held out for validation, if a folder has no "
        "val/.",
    )
    test: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2,
        description="Fraction of a folder held out for test, if it has neither test/ nor val/.",
    )
    split_seed: int = Field(
        default=0, description="Seed of the split; independent of the training seed."
    )
    normalization: Literal["dataset", "half"] = Field(
        default="dataset",
        description="`dataset` uses the training split's mean and standard deviation per channel; "
        "`half` maps pixels to [-1, 1].",
    )
    images: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Number of training images to use; 0 uses all."
    )
    label_noise: Fraction = Field(
        default=0.0, description="Fraction of training labels replaced by another class."
    )

    channels: Literal[1, 3] = Field(
        default=3, description="Channels that the images of a folder are converted to: gray or RGB."
    )
    resize: Annotated[int, Field(ge=0, le=16384)] = Field(
        default=0,
        description="Shorter side in pixels before the center crop; 0 uses network.resolution.",
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        default="bilinear", description="Filter of the resize; shrinking is antialiased."
    )
    max_pixels: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Largest width times height of an image file; 0 uses 89,478,485.",
    )


class Network(Part):
    """A torchvision network and its geometry."""

    name: Literal["mobilenet_v2", "shufflenet_v2_x1_0", "alexnet"] = Field(
        description="Architecture, by torchvision's name."
    )
    stem: Literal["paper", "stride1", "cifar"] = Field(
        default="paper",
        description="`paper` is torchvision's; `stride1` gives the first convolution stride 1; "
        "`cifar` also keeps the next reduction at stride 1.",
    )
    resolution: Annotated[int, Field(ge=8, le=1024)] = Field(
        description="Side of the square input in pixels."
    )
    dropout: bool = Field(default=True, description="Keep the network's dropout layers.")
    batch_norm: Literal["batch", "identity"] = Field(
        default="batch",
        description="`identity` fixes batch-norm at mean 0, variance 1, weight 1, bias 0, with "
        "initial weights that keep the signal's size.",
    )


class Augment(Part):
    """Augmentation of training images, at the data set's own resolution."""

    flip: bool = Field(default=False, description="Mirror each image with probability 1/2.")
    crop: Annotated[int, Field(ge=0, le=32)] = Field(
        default=0, description="Largest shift in pixels after zero padding; 0 disables it."
    )
    cutout: Annotated[int, Field(ge=0, le=128)] = Field(
        default=0, description="Side in pixels of the square that is blanked; 0 disables it."
    )
    resized_crop: Fraction = Field(
        default=0.0,
        description="Smallest share of the area that a random resized crop keeps; 0 disables it.",
    )
    rand_augment: Annotated[int, Field(ge=0, le=30)] = Field(
        default=0, description="Magnitude of RandAugment's two operations; 0 disables it."
    )
    mixup: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.0, description="Parameter of mixup's beta distribution; 0 disables it."
    )


class Start(Part):
    """A cheaper geometry for the first epochs.

    Strides, pooling and resolution change; the weights stay the same.
    """

    fraction: Fraction = Field(description="Fraction of all epochs trained in this geometry.")
    stem: Literal["paper", "stride1", "cifar"] | None = Field(
        default=None, description="Stem of these epochs; without it, the network's own."
    )
    resolution: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        default=None,
        description="Side of these epochs' images in pixels; without it, the network's own.",
    )


class Train(Part):
    """Training with stochastic gradient descent on cross-entropy."""

    epochs: Count = Field(description="Number of epochs.")
    batch_size: Count = Field(default=128, description="Images per step.")
    learning_rate: Positive = Field(description="Peak learning rate.")
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="Stochastic gradient descent with momentum, or AdamW."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="Momentum.")
    nesterov: bool = Field(default=True, description="Use Nesterov momentum.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=5e-4, description="L2 penalty on tensors of two or more dimensions."
    )
    decay_norms: bool = Field(
        default=False, description="Apply weight decay to biases and normalization parameters too."
    )
    schedule: Literal["one-cycle", "cosine", "step", "constant"] = Field(
        default="one-cycle",
        description="`one-cycle` rises linearly, then falls linearly to 0; `cosine` falls as half "
        "a cosine; `step` multiplies by step_factor at each milestone.",
    )
    warmup: Fraction = Field(
        default=0.25, description="Fraction of all steps in which the learning rate rises first."
    )
    milestones: tuple[Fraction, ...] = Field(
        default=(), description="Fractions of training at which the step schedule multiplies."
    )
    step_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="Factor of the step schedule."
    )
    label_smoothing: Fraction = Field(default=0.0, description="Label smoothing; 0 disables it.")
    ema: Fraction = Field(
        default=0.0,
        description="Decay per step of the averaged weights, which are evaluated and kept; "
        "0 disables averaging.",
    )
    precision: Literal["fp32", "bf16", "auto"] = Field(
        default="fp32",
        description="Arithmetic of the forward pass; `bf16` uses autocast, and `auto` is `bf16` "
        "where the device computes it in hardware, else `fp32`.",
    )
    augment: Augment = Field(default=Augment(), description="Augmentation of training images.")
    until: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="Stop after the first epoch that classifies this percentage of the training "
        "images correctly; not used in retraining.",
    )
    distill: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Share of the loss that is the divergence from the teacher's probabilities; "
        "above 0 it needs a [teacher] table.",
    )
    shards: Count = Field(
        default=1,
        description="Parts of each batch, each normalized by its own statistics; on a CPU they "
        "run side by side.",
    )
    start: Start | None = Field(
        default=None, description="Cheaper geometry of the first epochs; without it, there is none."
    )


class Teacher(Part):
    """A larger network that is trained first; its probabilities are part of other networks' loss.

    All recipes with the same data and the same teacher share it.
    """

    widths: tuple[Count, Count, Count] = Field(
        default=(64, 256, 256), description="Channels of the three blocks."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of the teacher, the same for every seed of the recipe."
    )
    train: Train = Field(description="Training of the teacher.")

    @model_validator(mode="after")
    def _alone(self) -> Teacher:
        if self.train.distill or self.train.start:
            raise ValueError("a teacher without distill and without start")
        return self


class Scan(Part):
    """The pruning scan: accuracy on validation against the fraction pruned, without retraining."""

    fractions: tuple[Fraction, ...] = Field(
        default=tuple(round(0.05 * i, 2) for i in range(1, 20)),
        description="Fractions of the network-wide scan, on all validation images.",
    )
    layer_fractions: tuple[Fraction, ...] = Field(
        default=(0.1, 0.3, 0.5, 0.7, 0.9), description="Fractions of the scan of single layers."
    )
    images: Annotated[int, Field(ge=0)] = Field(
        default=2000, description="Validation images of the scan of single layers; 0 uses all."
    )
    tolerance: Annotated[float, Field(gt=0, lt=100)] = Field(
        default=1.0,
        description="Largest loss of accuracy in percentage points, at the upper end of its 95 % "
        "interval, up to the threshold.",
    )
    threshold: Fraction | None = Field(
        default=None, description="Fraction to prune; replaces the one that the scan chooses."
    )
