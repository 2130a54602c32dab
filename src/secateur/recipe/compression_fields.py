"""Tables of a recipe for pruning, quantization and measurement."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from secateur.recipe.fields import Count, Fraction, Part, Positive


class Removal(Part):
    """Options of one removal of channels."""

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
    grouped: Literal["groups", "width"] = Field(
        default="groups",
        description="What grouped convolutions lose: whole groups, or the same channels of each.",
    )
    depth: Fraction = Field(
        default=0.0, description="Fraction of the residual blocks that leave before channels do."
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
