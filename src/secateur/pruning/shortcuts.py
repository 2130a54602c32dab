"""What stays of a residual block whose branch has left: the path of its shortcut."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ShortcutOnly(nn.Module):
    """Children of a block one after another, under the names they had there.

    Args:
        block: Has the children; they are shared.
        path: Their names.
        relu: Whether a ReLU follows.

    Examples:
        >>> block = nn.ModuleDict({"branch": nn.Conv2d(3, 8, 3), "projection": nn.Conv2d(3, 8, 1)})
        >>> ShortcutOnly(block, ["projection"], relu=True)(torch.zeros(1, 3, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, block: nn.Module, path: Sequence[str], relu: bool) -> None:
        super().__init__()
        self.path, self.relu_after = tuple(path), relu
        for name in path:
            self.add_module(name, block.get_submodule(name))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the shortcut makes of ``x``."""
        for name in self.path:
            x = self.get_submodule(name)(x)
        return x.relu() if self.relu_after else x
