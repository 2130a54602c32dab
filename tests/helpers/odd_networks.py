"""Networks that torchvision does not have, small, and how to tell that two networks are one."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves


def conv(inputs, outputs, kernel=3, **more):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


def tail(channels, classes=5):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Net(nn.Module):
    """The modules and parameters of a test, called as it says."""

    def __init__(self, call, **parts):
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.call(self, x)


def batch(*shape, count=6):
    return torch.randn(
        count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


@torch.no_grad()
def lively(network, images):
    """Random norms and biases, and batch-norms that have seen ``images``; float64, inference."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.double().parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.add_(noise, alpha=0.3 if parameter.ndim == 1 else 0.05)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None
    network.train()
    network(images)
    return network.eval()


def outputs(network, images):
    with torch.no_grad():
        return torch.cat([leaf.flatten(1) for leaf in tree_leaves(network(images))], 1)


def assert_same(masked, removed, images, within=1e-9):
    expected, actual = outputs(masked, images), outputs(removed, images)
    scale = expected.abs().max()
    assert expected.std(0).max() > 1e-4 * scale  # else equality would say nothing
    assert (expected - actual).abs().max() <= within * scale


def shuffled(x, groups):
    count, channels, height, width = x.shape
    x = x.view(count, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(count, channels, height, width)


# ---- blocks that others have published


class Ghost(nn.Module):
    """Half of the channels from a convolution, the others from each of these (GhostNet)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        half = (outputs + 1) // 2
        self.outputs = outputs
        self.primary = nn.Sequential(conv(inputs, half, 1), nn.BatchNorm2d(half), nn.ReLU())
        self.cheap = nn.Sequential(conv(half, half, groups=half), nn.BatchNorm2d(half), nn.ReLU())

    def forward(self, x):
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], 1)[:, : self.outputs]


class Res2(nn.Module):
    """Convolutions one after another, each of the next part of the channels (Res2Net)."""

    def __init__(self, channels=16, parts=4):
        super().__init__()
        width = channels // parts
        self.parts = parts
        self.before, self.after = conv(channels, channels, 1), conv(channels, channels, 1)
        self.convs = nn.ModuleList([conv(width, width) for _ in range(parts - 1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(parts - 1)])

    def forward(self, x):
        first, *rest = self.before(x).relu().chunk(self.parts, 1)
        made, last = [first], 0
        for part, layer, norm in zip(rest, self.convs, self.norms, strict=True):
            last = norm(layer(part + last)).relu()
            made.append(last)
        return (x + self.after(torch.cat(made, 1))).relu()


class CrossStage(nn.Module):
    """Two paths for two halves (CSPNet)."""

    def __init__(self, channels=16):
        super().__init__()
        self.a, self.b = conv(channels // 2, 6), conv(6, channels // 2)
        self.out = conv(channels, channels, 1)

    def forward(self, x):
        first, second = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        return self.out(torch.cat([first, second + self.b(self.a(second).relu())], 1)).relu()


class Selective(nn.Module):
    """Two kernels, weighed by a softmax over both (SKNet)."""

    def __init__(self, channels=16):
        super().__init__()
        self.a, self.b = conv(channels, channels), conv(channels, channels, 5)
        self.squeeze = nn.Linear(channels, 8)
        self.excite = nn.ModuleList([nn.Linear(8, channels) for _ in range(2)])

    def forward(self, x):
        both = torch.stack([self.a(x).relu(), self.b(x).relu()], 1)
        z = self.squeeze(both.sum(1).mean((2, 3))).relu()
        weights = torch.stack([excite(z) for excite in self.excite], 1).softmax(1)
        return (both * weights[..., None, None]).sum(1)


class SplitAttention(nn.Module):
    """Two groups, weighed by a softmax over both (ResNeSt)."""

    def __init__(self, channels=16):
        super().__init__()
        self.a = conv(channels, 2 * channels, groups=2)
        self.squeeze, self.excite = conv(channels, 8, 1), conv(8, 2 * channels, 1)

    def forward(self, x):
        y = self.a(x).relu()
        count, channels = y.shape[:2]
        parts = y.view(count, 2, channels // 2, *y.shape[2:])
        z = self.excite(self.squeeze(parts.sum(1).mean((2, 3), keepdim=True)).relu())
        weights = z.view(count, 1, 2, -1).transpose(1, 2).softmax(1).reshape(count, 2, -1, 1, 1)
        return (parts * weights).sum(1)


class ShuffleV1(nn.Module):
    """Grouped 1x1 convolutions with a channel shuffle between them (ShuffleNetV1)."""

    def __init__(self, channels=16, groups=2):
        super().__init__()
        self.groups = groups
        self.a = conv(channels, 8, 1, groups=groups)
        self.depthwise, self.norm = conv(8, 8, groups=8), nn.BatchNorm2d(8)
        self.b = conv(8, channels, 1, groups=groups)

    def forward(self, x):
        y = shuffled(self.a(x).relu(), self.groups)
        return (x + self.b(self.norm(self.depthwise(y)))).relu()


class Mixed(nn.Module):
    """Each third of the channels has a kernel size of its own (MixNet)."""

    def __init__(self, channels=18):
        super().__init__()
        third = channels // 3
        self.convs = nn.ModuleList([conv(third, third, k, groups=third) for k in (3, 5, 7)])

    def forward(self, x):
        parts = zip(self.convs, x.chunk(3, 1), strict=True)
        return torch.cat([layer(part) for layer, part in parts], 1)


class Rep(nn.Module):
    """3x3, 1x1 and identity, each with a norm, added (RepVGG)."""

    def __init__(self, channels=16):
        super().__init__()
        self.a, self.b = conv(channels, channels), conv(channels, channels, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(3)])

    def forward(self, x):
        branches = zip(self.norms, (self.a(x), self.b(x), x), strict=True)
        return sum(norm(branch) for norm, branch in branches).relu()


class Fuse(nn.Module):
    """Two resolutions that exchange what they see (HRNet)."""

    def __init__(self, channels=16):
        super().__init__()
        self.down = conv(channels, 12, stride=2)
        self.to_small, self.to_large = conv(channels, 12, stride=2), conv(12, channels, 1)

    def forward(self, x):
        small = self.down(x).relu()
        large = x + F.interpolate(self.to_large(small), scale_factor=2, mode="nearest")
        small = (small + self.to_small(x)).relu()
        small = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([large.relu(), small], 1)


class UNet(nn.Module):
    def __init__(self, channels=16):
        super().__init__()
        self.a, self.b = conv(channels, 12), conv(12, 12)
        self.up, self.c = nn.ConvTranspose2d(12, 8, 2, 2), conv(channels + 8, channels)

    def forward(self, x):
        deep = self.b(self.a(F.max_pool2d(x, 2)).relu()).relu()
        return self.c(torch.cat([x, self.up(deep)], 1)).relu()


class ScaledResidual(nn.Module):
    """Branches of one and two convolutions, a fifth of which is added (Inception-ResNet)."""

    def __init__(self, channels=16):
        super().__init__()
        self.a, self.b = conv(channels, 4, 1), nn.Sequential(conv(channels, 4, 1), conv(4, 6))
        self.up = conv(10, channels, 1)

    def forward(self, x):
        return (x + 0.2 * self.up(torch.cat([self.a(x), self.b(x)], 1))).relu()


class Dense(nn.Module):
    """Every layer reads all before it (DenseNet); the last norm reads all of them."""

    def __init__(self, channels=16, growth=4):
        super().__init__()
        widths = [channels + growth * layer for layer in range(3)]
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in widths])
        self.convs = nn.ModuleList([conv(width, growth) for width in widths])

    def forward(self, x):
        features = [x]
        for norm, layer in zip(self.norms, self.convs, strict=True):
            features.append(layer(norm(torch.cat(features, 1)).relu()))
        return torch.cat(features, 1)


class Excite(nn.Module):
    """Squeeze-and-excitation with linear layers."""

    def __init__(self, channels=16):
        super().__init__()
        self.a, self.b = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x):
        gate = F.hardsigmoid(self.b(self.a(x.mean((2, 3))).relu()))
        return x * gate.view(*gate.shape, 1, 1)


class ScaledBlock(nn.Module):
    """A block of ConvNeXt with a scale for each channel, and a norm of the caller's choice."""

    def __init__(self, channels=16, norm=nn.Identity):
        super().__init__()
        self.depthwise, self.norm = conv(channels, channels, 7, groups=channels), norm(channels)
        self.a, self.b = nn.Linear(channels, 24), nn.Linear(24, channels)
        self.layer_scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.layer_scale * self.b(F.gelu(self.a(y))).permute(0, 3, 1, 2)


class FrozenNorm(nn.Module):
    """A batch-norm of four buffers, as detectors have."""

    def __init__(self, channels=16):
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x):
        scale = self.weight * self.var.rsqrt()
        shift = self.bias - self.mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class Bare(nn.Module):
    """Parameters without layers, called as functions."""

    def __init__(self):
        super().__init__()
        self.filters = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.3)
        self.shift = nn.Parameter(torch.ones(8))
        self.middle, self.last = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        features = F.conv2d(x, self.filters, self.shift, padding=1).relu().mean((2, 3))
        return F.linear((features @ self.middle).sigmoid(), self.last)


class ExtraHead(nn.Module):
    """Gives a dictionary, and a second head in training that reads what else nobody reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head, self.aux = conv(3, 8), conv(8, 8), tail(8), tail(8)

    def forward(self, x):
        x = self.a(x).relu()
        heads = {"main": self.head(self.b(x).relu())}
        return heads | {"aux": self.aux(x)} if self.training else heads


def stacked(block, width=16):
    """A block between a stem and a second convolution."""
    return nn.Sequential(
        conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), block, conv(width, 12), tail(12)
    )


def reused():
    shared = nn.Sequential(conv(16, 16), nn.ReLU())
    return stacked(nn.Sequential(shared, nn.BatchNorm2d(16), shared))


def tied():
    first, second = conv(16, 16), conv(16, 16)
    second.weight = first.weight
    return stacked(nn.Sequential(first, nn.ReLU(), second))


def halves(first, second):
    """Two functions for the two halves of a convolution's channels, side by side again."""

    def call(network, x):
        a, b = network.a(x).chunk(2, 1)
        return network.tail(torch.cat([first(a), second(b)], 1))

    return Net(call, a=conv(3, 16), tail=tail(16))


def flat_shuffled():
    """Shuffles single pixels, so that two halves of a channel part ways."""

    def call(network, x):
        flat = F.adaptive_avg_pool2d(network.a(x), 2).flatten(1)
        return network.fc(flat.view(len(flat), 2, -1).transpose(1, 2).flatten(1))

    return Net(call, a=conv(3, 9), fc=nn.Linear(36, 5))


def pyramid():
    """Pooled to three sizes, flattened side by side (spatial pyramid)."""

    def call(network, x):
        features = network.a(x).relu()
        pools = [F.adaptive_max_pool2d(features, size).flatten(1) for size in (1, 2, 4)]
        return network.fc(torch.cat(pools, 1))

    return Net(call, a=conv(3, 8), fc=nn.Linear(8 * 21, 5))


FOLLOWED = {
    "ghost": lambda: stacked(nn.Sequential(Ghost(16, 16), Ghost(16, 12)), 12),
    "res2": lambda: stacked(Res2()),
    "cross_stage": lambda: stacked(CrossStage()),
    "selective": lambda: stacked(Selective()),
    "mixed": lambda: stacked(nn.Sequential(conv(16, 18), Mixed()), 18),
    "rep": lambda: stacked(Rep()),
    "fuse": lambda: stacked(Fuse(), 28),
    "unet": lambda: stacked(UNet()),
    "scaled_residual": lambda: stacked(ScaledResidual()),
    "dense": lambda: stacked(Dense(), 28),
    "excite": lambda: stacked(Excite()),
    "scaled_block": lambda: stacked(ScaledBlock()),
    "layer_norm_block": lambda: stacked(ScaledBlock(norm=nn.LayerNorm)),
    "frozen_norm": lambda: stacked(FrozenNorm()),
    "group_norm": lambda: stacked(nn.Sequential(conv(16, 16), nn.GroupNorm(4, 16), nn.Mish())),
    "resnext": lambda: stacked(nn.Sequential(conv(16, 16, groups=4), nn.ReLU())),
    "depth_multiplier": lambda: stacked(nn.Sequential(conv(16, 32, groups=16), nn.SiLU()), 32),
    "transposed": lambda: stacked(nn.ConvTranspose2d(16, 8, 3), 8),
    "transposed_groups": lambda: stacked(nn.ConvTranspose2d(16, 32, 3, groups=16), 32),
    "prelu": lambda: stacked(nn.PReLU(16)),
    "pixel_shuffle": lambda: stacked(nn.Sequential(nn.PixelShuffle(2), nn.MaxPool2d(2)), 4),
    "pixel_unshuffle": lambda: stacked(nn.PixelUnshuffle(2), 64),
    "channel_shuffle": lambda: stacked(nn.ChannelShuffle(4)),
    "glu": lambda: stacked(nn.GLU(1), 8),
    "maxout": lambda: stacked(Net(lambda _, x: torch.max(*x.chunk(2, 1)))  , 8),
    "gate_of_halves": lambda: stacked(Net(lambda _, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1]), 8),
    "crelu": lambda: stacked(Net(lambda _, x: torch.cat([x, -x], 1).relu()), 32),
    "crelu_shuffled": lambda: stacked(
        Net(lambda _, x: shuffled(torch.cat([x, -x], 1).relu(), 2)), 32
    ),
    "half_rectified": lambda: halves(F.relu, lambda b: b),
    "half_scaled": lambda: halves(lambda a: 0.5 * a, lambda b: b),
    "half_shifted": lambda: halves(lambda a: a.roll(1, 3), lambda b: b.square()),
    "flat_shuffled": flat_shuffled,
    "pyramid": pyramid,
    "dropout": lambda: stacked(nn.Sequential(nn.Dropout2d(0.3), nn.ReLU6(inplace=True))),
    "circular": lambda: stacked(conv(16, 16, padding_mode="circular")),
    "reused": reused,
    "tied": tied,
    "bare": Bare,
    "extra_head": ExtraHead,
    "one_class": lambda: nn.Sequential(conv(3, 2), nn.Sigmoid(), conv(2, 2), tail(2, 1)),
}  # fmt: skip
