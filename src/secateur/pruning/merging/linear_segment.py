"""A segment of a chain without activations, to be trained before it is merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from secateur.pruning.merging.links import Segment, Sides


class LinearSegment(nn.Module):
    """Convolutions, batch-norms and residual adds of a segment, without activations.

    All padding is at the front: the input is padded once, and inner convolutions do not pad. Only
    then is the segment equal to one convolution. At the border of the image it therefore differs
    from the original network, where inner convolutions read zeros instead of what the convolution
    before them makes of zeros. In a segment, the parts keep their weights.

    Args:
        segment: Describes the wiring.
        convs: The convolutions, one for each link; their padding is set to 0.
        norms: For each its batch-norm, or an identity.
        projections: For each residual add its projection and batch-norm, or None.
    """

    def __init__(
        self,
        segment: Segment,
        convs: Sequence[nn.Conv2d],
        norms: Sequence[nn.Module],
        projections: Sequence[tuple[nn.Conv2d, nn.Module] | None],
    ) -> None:
        super().__init__()
        self.groups = segment.groups
        self.margin = segment.margins[0]
        self.crops = [
            segment.crop(number, number + 1, link.layer.window)
            for number, link in enumerate(segment.links, segment.start)
        ]
        self.skips = [
            (skip.start - segment.start, skip.end - segment.start,
             segment.crop(skip.start, skip.end, skip.window))
            for skip in segment.skips
        ]  # fmt: skip
        self.convs, self.norms = nn.ModuleList(convs), nn.ModuleList(norms)
        self.projections = nn.ModuleList(nn.ModuleList(each or ()) for each in projections)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the segment's output, before its activation.

        Args:
            x: (N, C, H, W).
        """
        values = [cropped(x, (-self.margin[0], -self.margin[1]))]
        ways = [list(parts.children()) for parts in self.projections]
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(cropped(values[number], self.crops[number])))
            for (start, end, crop), projection in zip(self.skips, ways, strict=True):
                if end == number + 1:
                    way = cropped(values[start], crop)
                    for module in projection:
                        way = module(way)
                    x = x + way
            values.append(x)
        return x


def cropped(x: Tensor, sides: Sides) -> Tensor:
    """Remove pixels at each side; a negative number appends zeros."""
    height, width = sides
    return F.pad(x, (-width, -width, -height, -height)) if height or width else x
