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
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secateur.errors import RecipeError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """A part of a recipe: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Part):
    """Which images, and how they are split and scaled.

    ``validation`` is the fraction of the training set held out, stratified by class and drawn with
    ``split_seed``. ``normalization`` is ``dataset`` (mean and standard deviation of the training
    split, per channel) or ``half`` (to [-1, 1], as the published code does).

    ``images`` of what is left for training are used, 0 for all, as many of each class as its share;
    ``label_noise`` is the fraction of their labels that is replaced by another class. Both are
    drawn with ``split_seed``; validation and test labels stay as they are.
    """

    name: Literal["cifar10", "fashionmnist", "fashionmnist-mini", "folder"]
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: int = 0
    normalization: Literal["dataset", "half"] = "dataset"
    images: Annotated[int, Field(ge=0)] = 0
    label_noise: Fraction = 0.0


class Network(Part):
    """A torchvision network and its geometry.

    ``stem``: ``paper`` is torchvision's own; ``stride1`` has a first convolution of stride 1;
    ``cifar`` also keeps the next reduction at stride 1 (the max-pool of ShuffleNetV2 and the first
    strided stage of MobileNetV2). ``resolution`` is the side of the square input in pixels.

    Without ``dropout`` every dropout layer lets everything through. ``batch_norm``: ``identity``
    fixes each batch-norm at mean 0, variance 1, weight 1, bias 0, and draws initial weights that
    keep the signal's size without it; both as where the publication makes networks overfit.
    """

    name: Literal["mobilenet_v2", "shufflenet_v2_x1_0", "alexnet"]
    stem: Literal["paper", "stride1", "cifar"] = "paper"
    resolution: Annotated[int, Field(ge=8, le=1024)]
    dropout: bool = True
    batch_norm: Literal["batch", "identity"] = "batch"


class Augment(Part):
    """What is done to a training image: chances and pixels at the data set's own resolution.

    ``flip`` mirrors each image with probability 1/2, ``crop`` shifts it by up to that many pixels
    after padding with zeros, ``cutout`` blanks a square of that side.
    """

    flip: bool = False
    crop: Annotated[int, Field(ge=0, le=32)] = 0
    cutout: Annotated[int, Field(ge=0, le=128)] = 0


class Train(Part):
    """How a network is trained: stochastic gradient descent on cross-entropy.

    ``schedule``: ``one-cycle`` rises linearly over the fraction ``warmup`` of all steps and falls
    linearly to zero; ``step`` multiplies by ``step_factor`` at each of ``milestones`` (fractions of
    training); ``constant`` does neither. ``weight_decay`` applies to tensors of two or more
    dimensions, or to all with ``decay_norms``. ``ema`` is the decay per step of the average that is
    evaluated and kept, 0 for none.

    ``until``: training ends after the first epoch with at least that percentage of all training
    images right, in inference mode; the learning rate goes as if for ``epochs``. Retraining after
    pruning knows no such end.
    """

    epochs: Count
    batch_size: Count = 128
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    decay_norms: bool = False
    schedule: Literal["one-cycle", "step", "constant"] = "one-cycle"
    warmup: Fraction = 0.25
    milestones: tuple[Fraction, ...] = ()
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    label_smoothing: Fraction = 0.0
    ema: Fraction = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    augment: Augment = Augment()
    until: Annotated[float, Field(gt=0, le=100)] | None = None


class Scan(Part):
    """How much can go without retraining: accuracy on validation against the fraction pruned.

    The network-wide scan uses every validation image; the per-layer scan ``images`` of them, evenly
    spaced (0 for all), at ``layer_fractions``. The threshold is the largest fraction up to which
    every point's loss of accuracy, at the upper end of its 95 % interval, is within ``tolerance``
    (percentage points); ``threshold`` overrides it by hand.
    """

    fractions: tuple[Fraction, ...] = tuple(round(0.05 * i, 2) for i in range(1, 20))
    layer_fractions: tuple[Fraction, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    images: Annotated[int, Field(ge=0)] = 2000
    tolerance: Annotated[float, Field(gt=0, lt=100)] = 1.0
    threshold: Fraction | None = None


class Prune(Part):
    """Iterative pruning: rounds of masking and retraining, then removal.

    ``fraction`` is what is gone at the end, of the channels that can go and of the weights in each
    linear layer; ``"scan"`` takes the scan's threshold. ``objective`` with ``target`` removes
    instead just as many channels as leave ``target`` of the network's ``macs`` or ``parameters``,
    or of its ``latency`` on this machine, as a file of ``precision`` with ``bench.threads``.
    Which ones: those of least ``importance``, the same fraction of every group (``local``, as
    published), wherever they are (``global``), or from each group as much as its own scanned curve
    allows for one common loss (``sensitivity``). ``linear``: hidden linear layers lose single
    ``weights``, as published, or whole ``neurons``. Widths left are rounded up to a multiple of
    ``round_to``.

    ``schedule`` says how much is gone after each of ``rounds``: ``geometric`` removes the same
    share of what is left each time, ``cubic`` most of it early, ``one-shot`` all of it in the
    first. ``retrain``: ``finetune`` goes on at ``finetune_factor`` times the peak learning rate,
    constant; ``rewind`` replays the whole learning-rate schedule from the trained weights;
    ``reinit`` draws what remains anew, uniformly, and replays it. ``distill`` is the share of the
    loss that is the divergence from the reference network's probabilities, 0 for labels alone.
    """

    fraction: Fraction | Literal["scan"] = "scan"
    objective: Literal["macs", "parameters", "latency"] | None = None
    target: Annotated[float, Field(gt=0, le=1)] | None = None
    precision: Literal["int8", "fp32"] = "int8"
    importance: Literal["l1", "l2", "batch_norm", "taylor", "random"] = "l2"
    scope: Literal["local", "global", "sensitivity"] = "local"
    linear: Literal["weights", "neurons"] = "weights"
    schedule: Literal["geometric", "cubic", "one-shot"] = "geometric"
    rounds: Count = 3
    epochs: Count
    retrain: Literal["finetune", "rewind", "reinit"] = "rewind"
    learning_rate: Positive | None = None
    finetune_factor: Annotated[float, Field(gt=0, le=1)] = 0.01
    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    round_to: Literal[1, 4, 8, 16] = 8

    @model_validator(mode="after")
    def _together(self) -> Prune:
        if (self.objective is None) != (self.target is None):
            raise ValueError("objective and target, both or neither")
        return self


class Quantize(Part):
    """Post-training quantization: activations to uint8 per tensor, weights to ``bits`` per channel.

    ``images`` training images, without their labels, calibrate the activation ranges: ``minmax``
    takes the extremes seen, ``percentile`` the central ``percentile`` % of all values, ``mse`` and
    ``entropy`` what loses least of either; ``auto`` tries all four and keeps the one of least
    cross-entropy on ``scan_images`` validation images (0 for all).

    ``bits``: 2 to 8 for every weight, or ``mixed``: each layer as many as the scan says it needs,
    down to ``size`` of the weights' int8 bits, or else as few as lose at most ``tolerance``
    percentage points on the same validation images. Without ``per_channel`` a weight has one scale
    in all.

    ``price`` lets bits and loss decide instead: how many nats a megabyte of weights may cost, 0 for
    never mind. Each row of each weight gets the step, and each weight the integer, at which a bit
    more no longer pays; the first layer, the last and depthwise ones stay at 8 bits. ``auto`` takes
    the highest price at which the accuracy lost on ``scan_images`` validation images, at the upper
    end of its 95 % interval, is within ``tolerance``.

    ``saturation_free`` keeps int8 weights from overflowing 16 bits on processors without
    VNNI. Depthwise layers are padded with zeros to whole blocks of ``block`` channels, on which
    kernels are fast. ``equalize`` evens out the ranges of neighboring layers; ``rounding`` is to
    ``nearest`` or ``adaptive`` to what the data shows; ``correct_bias`` takes the mean that
    rounding adds out of every channel. ``auto`` for either (adaptive below 8 bits only) keeps what
    has the least cross-entropy on the validation images. ``epochs`` of quantization-aware training
    follow, with learned step sizes, one cycle to ``learning_rate``.
    """

    images: Count = 512
    method: Literal["minmax", "percentile", "mse", "entropy", "auto"] = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    bits: Annotated[int, Field(ge=2, le=8)] | Literal["mixed"] = 8
    size: Annotated[float, Field(gt=0, le=1)] | None = None
    tolerance: Annotated[float, Field(gt=0, lt=100)] = 0.3
    scan_images: Annotated[int, Field(ge=0)] = 1000
    price: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.0
    per_channel: bool = True
    saturation_free: bool = True
    block: Literal[1, 8, 16] = 16
    equalize: bool = False
    rounding: Literal["nearest", "adaptive", "auto"] = "auto"
    correct_bias: bool | Literal["auto"] = "auto"
    epochs: Annotated[int, Field(ge=0)] = 0
    learning_rate: Positive = 0.005

    @model_validator(mode="after")
    def _together(self) -> Quantize:
        if self.size is not None and self.bits != "mixed":
            raise ValueError('size together with bits = "mixed" only')
        if self.price and not (self.bits == 8 and self.per_channel):
            raise ValueError("a price together with bits = 8 and per_channel only")
        return self


class Bench(Part):
    """How files are run: by ``runtime``, with ``threads`` threads.

    Latency is that of batch 1, variants taking turns. OpenVINO is an extra, and reads the same
    files.
    """

    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    threads: Count = 2
    warmup: Count = 20
    repeats: Count = 200


class Recipe(Part):
    """Everything that decides a result."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    description: str = ""
    preset: Literal["paper", "fast", "quick", "custom"] = "custom"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: Data
    network: Network
    train: Train
    scan: Scan = Scan()
    prune: Prune
    quantize: Quantize = Quantize()
    bench: Bench = Bench()

    @property
    def id(self) -> str:
        """Content id of the recipe: 12 hexadecimal digits; name and description do not count."""
        said = self.model_dump(
            mode="json", exclude_defaults=True, exclude={"name", "description", "preset"}
        )
        return content_id(said)

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
    """
    if name.endswith(".toml"):
        try:
            text, where = Path(name).read_text(encoding="utf-8"), name
        except (OSError, UnicodeDecodeError) as error:
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
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError("not a TOML file", where=where, found=error) from error
    for override in overrides or []:
        _override(said, override)
    if seed is not None:
        said["seed"] = seed
    return _validate(said, where)


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe from TOML ``text``; ``where`` names it in errors."""
    try:
        return _validate(tomllib.loads(text), where)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError("not a TOML file", where=where, found=error) from error


def _override(said: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise RecipeError("cannot read --set", found=repr(override), expected="key=value")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        said = said.setdefault(parent, {})
        if not isinstance(said, dict):
            raise RecipeError("cannot read --set", where=key, found=f"{parent} is not a table")
    try:
        said[leaf] = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        said[leaf] = value.strip()


def _validate(said: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(said)
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
