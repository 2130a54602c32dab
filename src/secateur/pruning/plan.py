"""The plan of a removal as plain data: kept entries of tensors, and constants to fold.

The order of steps follows distiller's ``thinning.py``: a plan can be saved, read and replayed. A
pruned network is stored as specification, plan and weights, not as a pickled module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.errors import NetworkError
from secateur.pruning.tracing.channel_graph import INPUTS, Axis


class Cut(BaseModel):
    """The kept entries of a module along one axis of its tensors.

    Attributes:
        module: Name of the module; empty for the network itself.
        axis: 0 for a layer's outputs (with bias and statistics), 1 for a plain layer's inputs.
        tensors: Parameters and buffers of the module that are cut in this way.
        size: Size before the cut.
        keep: Indices of kept entries, in their new order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str
    axis: int
    tensors: tuple[str, ...]
    size: int
    keep: tuple[int, ...]

    @property
    def paths(self) -> list[str]:
        """Full names of the tensors."""
        return [f"{self.module}.{leaf}" if self.module else leaf for leaf in self.tensors]


class Fold(BaseModel):
    """Constant inputs of a layer, to be folded into a bias.

    Attributes:
        module: Name of the convolution or linear layer that reads them.
        inputs: Indices before any cut.
        values: Constant value of each.
        into: Tensor that the weighted sum is added to: the layer's bias, or with a minus sign the
            running mean of the batch-norm that is its only reader.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str
    inputs: tuple[int, ...]
    values: tuple[float, ...]
    into: str


class Scale(BaseModel):
    """Scaled entries of a tensor, to compensate a division by a width.

    Attentions divide by the square root of the head width, means by a count.

    Attributes:
        tensor: Name of a parameter.
        axis: Axis of the entries.
        inputs: Indices of the entries before any cut.
        factor: The scale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: str
    axis: int
    inputs: tuple[int, ...]
    factor: float


class Setting(BaseModel):
    """A module attribute that holds a width, such as ``num_heads``.

    Attributes:
        module: Name of the module; empty for the network itself.
        attribute: Name of the attribute.
        value: Value after the removal.
        index: Position of the value, if the attribute is a list or tuple.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str
    attribute: str
    value: int
    index: int | None = None


class Reindex(BaseModel):
    """An index buffer that reorders channels, with its values after the removal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: str
    values: tuple[int, ...]


class Shortcut(BaseModel):
    """A removed residual block, and the part of it that is kept.

    Attributes:
        module: Name of the block.
        path: Names of the children that are kept, in the order in which they run. If empty, the
            block is replaced by an identity.
        relu: Whether a ReLU follows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str
    path: tuple[str, ...] = ()
    relu: bool = False

    def removes(self, tensor: str) -> bool:
        """Whether the tensor of that name is removed."""
        kept = tuple(f"{self.module}.{part}." for part in self.path)
        return tensor.startswith(f"{self.module}.") and not tensor.startswith(kept)


_OPTIONAL = ("blocks", "shortcuts", "scales", "settings", "indices")


class Plan(BaseModel):
    """A plan of removal: constants are folded first, in order, then blocks and cuts are applied.

    Sizes and indices are those before the removal. A plan holds no weights.

    Attributes:
        folds: Constants to fold into biases.
        cuts: Kept entries of tensors.
        blocks: Modules replaced by identities; see :mod:`secateur.pruning.blocks`.
        shortcuts: Blocks of which only the projection is kept.
        scales: Weights to scale.
        settings: Module attributes to change.
        indices: Index buffers to change.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> images = torch.zeros(1, 3, 8, 8)
        >>> plan = secateur.plan_removal(network, images, fraction=0.5)
        >>> secateur.Plan.from_json(plan.to_json()) == plan
        True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[2] = 2
    folds: tuple[Fold, ...] = ()
    cuts: tuple[Cut, ...] = ()
    blocks: tuple[str, ...] = ()
    shortcuts: tuple[Shortcut, ...] = ()
    scales: tuple[Scale, ...] = ()
    settings: tuple[Setting, ...] = ()
    indices: tuple[Reindex, ...] = ()

    def to_json(self) -> str:
        """Return the plan as JSON, without optional parts that are empty."""
        empty = {part for part in _OPTIONAL if not getattr(self, part)}
        return self.model_dump_json(exclude=empty, exclude_none=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read the JSON of :meth:`to_json`.

        Raises:
            NetworkError: The text is not a plan.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or None
            raise NetworkError("not a removal plan", where=where, found=first["msg"]) from error

    @classmethod
    def of(cls, keeps: Mapping[Axis, Sequence[int]], sizes: Mapping[Axis, int]) -> Plan:
        """The plan that keeps ``keeps`` along each axis, and everything along all others."""
        alike: dict[tuple[str, int, int, tuple[int, ...]], list[str]] = {}
        for axis, keep in keeps.items():
            if axis.axis != INPUTS and list(keep) != list(range(sizes[axis])):
                module, _, leaf = axis.tensor.rpartition(".")
                alike.setdefault((module, axis.axis, sizes[axis], tuple(keep)), []).append(leaf)
        cuts = tuple(
            Cut(module=module, axis=axis, tensors=tuple(leaves), size=size, keep=keep)
            for (module, axis, size, keep), leaves in alike.items()
        )
        return cls(cuts=cuts)

    def keeps(self) -> dict[Axis, tuple[int, ...]]:
        """Kept indices along each axis that is cut."""
        return {Axis(path, cut.axis): cut.keep for cut in self.cuts for path in cut.paths}

    def removes(self, tensor: str) -> bool:
        """Whether the tensor of that name is removed with a block."""
        blocks = (Shortcut(module=name) for name in self.blocks)
        return any(block.removes(tensor) for block in (*blocks, *self.shortcuts))

    def then(self, later: Plan) -> Plan:
        """Compose this plan with ``later`` into one plan for stored weights.

        Folds and scales are omitted, because weights stored after a removal include them.
        """
        keeps: dict[Axis, Sequence[int]] = {}
        sizes: dict[Axis, int] = {}
        for plan in (self, later):
            for cut in plan.cuts:
                for path in cut.paths:
                    axis = Axis(path, cut.axis)
                    before = keeps.get(axis, range(cut.size))
                    sizes.setdefault(axis, cut.size)
                    if len(before) != cut.size:
                        raise misfit(path, f"{cut.size} entries on axis {cut.axis}", len(before))
                    keeps[axis] = tuple(before[index] for index in cut.keep)
        blocks = tuple(dict.fromkeys((*self.blocks, *later.blocks)))
        shortcuts = tuple(dict.fromkeys((*self.shortcuts, *later.shortcuts)))
        keeps = {axis: keep for axis, keep in keeps.items() if not later.removes(axis.tensor)}
        settings = {(s.module, s.attribute, s.index): s for s in (*self.settings, *later.settings)}
        indices = {index.tensor: index for index in (*self.indices, *later.indices)}
        update = {
            "blocks": blocks,
            "shortcuts": shortcuts,
            "settings": tuple(settings.values()),
            "indices": tuple(indices.values()),
        }
        return Plan.of(keeps, sizes).model_copy(update=update)


def misfit(where: str, expected: object, actual: object) -> NetworkError:
    """The error for a plan that was made for another network."""
    return NetworkError(
        "removal plan does not fit the network",
        where=where,
        expected=expected,
        found=actual,
        remedy="a plan goes with the network it was made for",
    )
