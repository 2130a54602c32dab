"""A recipe says everything that decides a result; each part belongs to one stage.

A recipe is TOML. Unknown keys, wrong types and values out of range are refused with one line that
names the key. Fields left at their default are left out of every content id, so that a new field
with a neutral default never renames an old result (after open_lth's ``foundations/desc.py``).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secateur.disk import read_bytes
from secateur.errors import RecipeError, StoreError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, lt=2**31)]

_MOST_BYTES = 2**20
_MOST_DEPTH = 16


class Part(BaseModel):
    """A part of a recipe: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Part):
    """The images, and how they are split and normalized.

    Every draw uses ``split_seed`` and is stratified by class. Validation and test labels are never
    changed.
    """

    name: Literal["cifar10", "fashionmnist", "fashionmnist-mini", "folder"] = Field(
        description="Data set; `folder` reads the images below --data: train/CLASS/*, val/CLASS/* "
        "and test/CLASS/*, or CLASS/*."
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
    """The geometry of the first epochs, where it computes less than the network's own.

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
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Arithmetic of the forward pass; `bf16` uses autocast."
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


class Removal(Part):
    """Which channels leave a network: the options of one removal."""

    objective: Literal["macs", "parameters", "latency"] | None = Field(
        default=None, description="Cost that target refers to; without it, fraction decides."
    )
    target: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Fraction of the objective's cost to keep."
    )
    precision: Literal["int8", "fp32"] = Field(
        default="int8", description="Precision in which the latency objective is measured."
    )
    importance: Literal["l1", "l2", "batch_norm", "taylor", "fpgm", "lamp", "random"] = Field(
        default="l2", description="Score of a channel; the lowest are removed first."
    )
    scope: Literal["local", "global", "sensitivity"] = Field(
        default="local",
        description="`local` removes the same fraction of each group, `global` the lowest scores "
        "anywhere, `sensitivity` what the scan allows for one common loss.",
    )
    linear: Literal["weights", "neurons"] = Field(
        default="weights", description="What hidden linear layers lose: single weights or neurons."
    )
    round_to: Count = Field(
        default=8, description="Round remaining widths up to a multiple of this."
    )
    keep: tuple[str, ...] = Field(
        default=(),
        description="Modules whose outputs all stay: names, or patterns such as `head.*`.",
    )
    fractions: dict[str, Fraction] = Field(
        default={},
        description="Fractions of single modules, by name or pattern, in place of the common one.",
    )
    attention: Literal["width", "heads"] = Field(
        default="width",
        description="What attentions lose: channels within each head, or whole heads.",
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.objective is None) != (self.target is None):
            raise ValueError("objective and target, both or neither")
        return self


class Prune(Removal):
    """Iterative pruning: rounds of removing channels and retraining."""

    fraction: Fraction | Literal["scan"] = Field(
        default="scan",
        description="Fraction of prunable channels, and of linear weights, removed in the end; "
        "`scan` uses the scan's threshold.",
    )
    schedule: Literal["geometric", "cubic", "one-shot"] = Field(
        default="geometric",
        description="`geometric` removes the same share of the rest in each round, `cubic` most "
        "in the early rounds, `one-shot` all in the first.",
    )
    rounds: Count = Field(default=3, description="Rounds of pruning and retraining.")
    epochs: Count = Field(description="Epochs of retraining in each round.")
    retrain: Literal["finetune", "rewind", "reinit"] = Field(
        default="rewind",
        description="`finetune` uses a small constant rate; `rewind` repeats the schedule from "
        "the trained weights; `reinit` re-initializes the surviving weights.",
    )
    learning_rate: Positive | None = Field(
        default=None, description="Peak rate of retraining; without it, that of [train]."
    )
    finetune_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.01, description="Constant rate of finetune, as a fraction of the peak rate."
    )
    distill: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Share of the loss that is the divergence from another network's "
        "probabilities; 0 disables distillation.",
    )
    teacher: Literal["reference", "teacher"] = Field(
        default="reference",
        description="Network that distill refers to: the unpruned reference, or that of [teacher].",
    )
    round_to: Literal[1, 4, 8, 16] = Field(
        default=8, description="Round remaining widths up to a multiple of this."
    )


class Quantize(Part):
    """Quantization: uint8 activations per tensor, integer weights per output channel.

    Calibration uses training images without labels. Choices between methods use validation.
    """

    images: Count = Field(
        default=512, description="Training images that calibrate activation ranges."
    )
    method: Literal["minmax", "percentile", "mse", "entropy", "auto"] = Field(
        default="minmax",
        description="Choice of activation ranges; `auto` tries all four and keeps the least "
        "cross-entropy on validation.",
    )
    percentile: Annotated[float, Field(gt=50, le=100)] = Field(
        default=99.99, description="Central percentage of values that the percentile method keeps."
    )
    bits: Annotated[int, Field(ge=2, le=8)] | Literal["mixed"] = Field(
        default=8, description="Bits of each weight; `mixed` chooses them layer by layer."
    )
    size: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Size of mixed weights as a fraction of int8; replaces tolerance there.",
    )
    tolerance: Annotated[float, Field(gt=0, lt=100)] = Field(
        default=0.3,
        description="Largest loss in percentage points for mixed bits and automatic price.",
    )
    scan_images: Annotated[int, Field(ge=0)] = Field(
        default=1000, description="Validation images on which quantization chooses; 0 uses all."
    )
    price: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        default=0.0,
        description="Rate-distortion price, nats of loss per megabyte of weights; 0 disables it, "
        "`auto` takes the highest within tolerance.",
    )
    per_channel: bool = Field(
        default=True, description="One scale per output channel; otherwise one per weight tensor."
    )
    saturation_free: bool = Field(
        default=True, description="Limit int8 weights so that 16-bit kernels cannot saturate."
    )
    block: Literal[1, 8, 16] = Field(
        default=16, description="Pad depthwise layers with zero channels to a multiple of this."
    )
    equalize: bool = Field(default=False, description="Equalize the ranges of neighboring layers.")
    rounding: Literal["nearest", "adaptive", "auto"] = Field(
        default="auto",
        description="Rounding of weights; `auto` tries adaptive rounding below 8 bits and keeps "
        "the better on validation.",
    )
    correct_bias: bool | Literal["auto"] = Field(
        default="auto",
        description="Subtract the mean error of each channel from its bias; `auto` keeps it "
        "if validation improves.",
    )
    epochs: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Epochs of quantization-aware training with learned step sizes."
    )
    learning_rate: Positive = Field(
        default=0.005, description="Peak rate of quantization-aware training, one cycle."
    )

    @model_validator(mode="after")
    def _together(self) -> Quantize:
        if self.size is not None and self.bits != "mixed":
            raise ValueError('size together with bits = "mixed" only')
        if self.price and not (self.bits == 8 and self.per_channel):
            raise ValueError("a price together with bits = 8 and per_channel only")
        return self


class Bench(Part):
    """Measurement of files: accuracy on the test images, and latency of one image."""

    runtime: Literal["onnxruntime", "openvino"] = Field(
        default="onnxruntime", description="Runtime of the files; `openvino` is an extra."
    )
    threads: Count = Field(default=2, description="Threads inside one operator.")
    warmup: Count = Field(default=20, description="Turns before timing starts.")
    repeats: Count = Field(default=200, description="Timed turns of each file; files take turns.")


class Recipe(Part):
    """Everything that decides a result."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)] = Field(
        description="Name of the run's folder; not part of the id."
    )
    description: str = Field(default="", description="A line for people; not part of the id.")
    preset: Literal["paper", "accurate", "fast", "quick", "custom"] = Field(
        default="custom", description="Family of built-in recipes; not part of the id."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of initial weights, batches, augmentation and pruning."
    )
    data: Data = Field(description="The images.")
    network: Network = Field(description="The network.")
    teacher: Teacher | None = Field(
        default=None, description="Network for train.distill and prune.teacher, trained first."
    )
    train: Train = Field(description="Training of the reference network.")
    scan: Scan = Field(default=Scan(), description="The pruning scan.")
    prune: Prune = Field(description="Pruning and retraining.")
    quantize: Quantize = Field(default=Quantize(), description="Quantization.")
    bench: Bench = Field(default=Bench(), description="Measurement.")

    @model_validator(mode="after")
    def _taught(self) -> Recipe:
        by_teacher = self.train.distill > 0 or self.prune.teacher == "teacher"
        if by_teacher and self.teacher is None:
            raise ValueError(
                'a [teacher] table where train.distill is above 0 or prune.teacher is "teacher"'
            )
        return self

    @property
    def id(self) -> str:
        """Content id of the recipe: 12 hexadecimal digits; names and descriptions do not count."""
        values = self.model_dump(
            mode="json", exclude_defaults=True, exclude={"name", "description", "preset"}
        )
        return content_id(values)

    @property
    def geometry(self) -> str:
        """The geometry in words, for example ``28x28 stem=stride1``."""
        side = self.network.resolution
        return f"{side}x{side} stem={self.network.stem}"

    def to_toml(self) -> str:
        """The recipe as TOML, every field written out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def content_id(value: object) -> str:
    """First 12 hexadecimal digits of the SHA-256 of ``value`` as canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def builtin_recipes() -> list[str]:
    """Names of the recipes inside the package, sorted."""
    folder = resources.files("secateur") / "recipes"
    return sorted(
        item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")
    )


def load_recipe(name: str, overrides: list[str] | None = None, seed: int | None = None) -> Recipe:
    """Load a built-in recipe by name, or one from a TOML file.

    Args:
        name: A name from :func:`builtin_recipes`, or a path that ends in ``.toml``.
        overrides: ``key=value`` pairs such as ``train.epochs=3``; the value is TOML, or a string.
        seed: Replaces the recipe's seed.

    Raises:
        RecipeError: The recipe is unknown, unreadable, or says something impossible.

    Examples:
        >>> recipe = secateur.load_recipe("quickstart", ["train.epochs=3"])
        >>> recipe.network.name, recipe.train.epochs
        ('shufflenet_v2_x1_0', 3)
    """
    if name.endswith(".toml"):
        try:
            text, where = read_bytes(Path(name), _MOST_BYTES).decode(), name
        except (StoreError, UnicodeDecodeError) as error:
            raise RecipeError("cannot read recipe", where=name, found=error) from error
    elif name in builtin_recipes():
        text = (resources.files("secateur") / "recipes" / f"{name}.toml").read_text("utf-8")
        where = f"built-in {name}"
    else:
        raise RecipeError(
            "unknown recipe",
            found=repr(name),
            remedy=_nearest(name, builtin_recipes())
            + "give a path ending in .toml or list the built-in ones with `secateur recipes`",
        )
    values = _parse(text, where)
    for override in overrides or []:
        _override(values, override)
    if seed is not None:
        values["seed"] = seed
    return _validate(values, where)


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe from TOML ``text``; ``where`` names it in errors."""
    return _validate(_parse(text, where), where)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of too many digits are ValueErrors
        raise RecipeError("not a TOML file", where=where, found=error) from error


def _check_values(value: object, where: str, depth: int = 0) -> None:
    """Make sure that tables are not nested deeply and integers have 64 bits, as TOML says."""
    if depth > _MOST_DEPTH:
        raise RecipeError("a recipe of too deeply nested tables", where=where)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RecipeError("a number out of range", where=where, expected="64 bits at most")
    for inner in value.values() if isinstance(value, dict) else ():
        _check_values(inner, where, depth + 1)
    for inner in value if isinstance(value, list) else ():
        _check_values(inner, where, depth + 1)


def _override(values: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise RecipeError("cannot read --set", found=repr(override), expected="key=value")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError("cannot read --set", where=key, found=f"{parent} is not a table")
    try:
        values[leaf] = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        values[leaf] = value.strip()
    except (ValueError, RecursionError) as error:
        raise RecipeError("cannot read --set", where=key, found=error) from error


def _validate(values: dict[str, Any], where: str) -> Recipe:
    _check_values(values, where)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        path = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            *parents, leaf = path
            remedy = _nearest(leaf, _fields(parents)).removesuffix("; ") or None
            what = "unknown recipe key"
            raise RecipeError(what, where=where, found=".".join(path), remedy=remedy) from None
        # In a union pydantic adds the branch it tried to the path; no user wrote that.
        key = ".".join(part for part in path if part.isidentifier() or part.isdigit())
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise RecipeError(
            f"recipe key {key} does not fit",
            where=where,
            expected=message[:1].lower() + message[1:],
            found="nothing" if problem["type"] == "missing" else repr(problem["input"])[:80],
        ) from None


def _fields(parents: list[str]) -> list[str]:
    part: type[BaseModel] = Recipe
    for parent in parents:
        annotation = part.model_fields[parent].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        part = annotation
    return list(part.model_fields)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?; " if close else ""
