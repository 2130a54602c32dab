"""A removal as plain data: which entries of which tensors stay, and which constants move to a bias.

The order of steps follows distiller's ``thinning.py``: a plan can be saved, read and replayed, and
a pruned network is its spec, its plan and its weights, never a pickled module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.errors import NetworkError
from secateur.pruning.tracing.channel_graph import INPUTS, Axis


class Cut(BaseModel):
    """What stays of one module along one axis of its tensors.

    Attributes:
        module: Its name; empty for the network itself.
        axis: 0 for a layer's outputs (with bias and statistics), 1 for a plain layer's inputs.
        tensors: Its parameters and buffers that are cut alike.
        size: Width before the cut.
        keep: Indices of what stays, in their new order.
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
    """Inputs of a layer that are constant, to be taken up by what is added to its outputs.

    Attributes:
        module: Name of the Conv or Linear that reads them.
        inputs: Which, by index before any cut.
        values: What each of them always is.
        into: Tensor that takes up the weighted sum: the layer's bias, or with a minus sign the
            running mean of the batch-norm that alone reads it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str
    inputs: tuple[int, ...]
    values: tuple[float, ...]
    into: str


class Scale(BaseModel):
    """Entries of a tensor that are multiplied, because the network divides by a width.

    Attentions divide by the root of a head's width, and means by a count.

    Attributes:
        tensor: Name of a parameter.
        axis: Along which.
        inputs: Which entries, by index before any cut.
        factor: What they are multiplied by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: str
    axis: int
    inputs: tuple[int, ...]
    factor: float


class Setting(BaseModel):
    """A width that a module keeps as a number, such as ``num_heads``.

    Attributes:
        module: Its name; empty for the network itself.
        attribute: Name of the number.
        value: What it is after the removal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str
    attribute: str
    value: int


class Reindex(BaseModel):
    """A buffer of positions that reorders channels: its values after the removal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: str
    values: tuple[int, ...]


_OPTIONAL = ("blocks", "scales", "settings", "indices")


class Plan(BaseModel):
    """Everything that leaves a network: constants to fold first, in order, then blocks, then cuts.

    Widths and indices are those before the removal. It holds no weights.

    Attributes:
        folds: Constants that move to a bias.
        cuts: What stays of each tensor.
        blocks: Modules that become identities; see :mod:`secateur.pruning.blocks`.
        scales: Weights that are multiplied.
        settings: Numbers of modules that change.
        indices: Buffers of positions that change.

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
    scales: tuple[Scale, ...] = ()
    settings: tuple[Setting, ...] = ()
    indices: tuple[Reindex, ...] = ()

    def to_json(self) -> str:
        """Return the plan as JSON, without the rarer parts where they are empty."""
        return self.model_dump_json(exclude={part for part in _OPTIONAL if not getattr(self, part)})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            NetworkError: It is not a plan.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or None
            raise NetworkError("not a removal plan", where=where, found=first["msg"]) from error

    @classmethod
    def of(cls, keeps: Mapping[Axis, Sequence[int]], sizes: Mapping[Axis, int]) -> Plan:
        """The plan that keeps ``keeps`` along each axis, and all of the others."""
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
        """What stays along each axis that is cut."""
        return {Axis(path, cut.axis): cut.keep for cut in self.cuts for path in cut.paths}

    def then(self, later: Plan) -> Plan:
        """One plan that does what this one and then ``later`` do, for stored weights.

        Folds and scales are left out: weights stored after a removal have them already.
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
        gone = tuple(f"{block}." for block in later.blocks)
        keeps = {axis: keep for axis, keep in keeps.items() if not axis.tensor.startswith(gone)}
        settings = {(s.module, s.attribute): s for s in (*self.settings, *later.settings)}
        indices = {index.tensor: index for index in (*self.indices, *later.indices)}
        update = {
            "blocks": blocks,
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
