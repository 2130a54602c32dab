"""What is followed and what is not, one operation at a time."""

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur
from helpers.odd_networks import Net, assert_same, batch, conv, lively, tail
from secateur.errors import NetworkError
from secateur.pruning.find import find_prunable


def found(network, side=8):
    return find_prunable(network, torch.zeros(2, 3, side, side))


def reasons(network):
    return {layer.name: layer.reason for layer in found(network).protected}


def between(call):
    """A function between a convolution ``a`` of 6 channels and one that reads them."""
    return Net(
        lambda network, x: network.b(call(network, network.a(x))).mean((2, 3)),
        a=conv(3, 6),
        b=nn.LazyConv2d(4, 1),
    )


def settle(network):
    with torch.no_grad():
        network(torch.zeros(2, 3, 8, 8))
    return network


@pytest.mark.parametrize(
    "call",
    [
        lambda n, x: x.relu_().mul_(2).clamp(0, 6),
        lambda n, x: F.hardswish(x, inplace=True) * torch.rand(1),
        lambda n, x: x * x.mean((2, 3), keepdim=True).sigmoid(),
        lambda n, x: x / x.std((2, 3), keepdim=True),
        lambda n, x: torch.where(x > 0, x, x.exp() - 1),
        lambda n, x: x.masked_fill(x < 0, 0),
        lambda n, x: torch.maximum(x, x.flip(3)),
        lambda n, x: F.pad(F.max_pool2d(x, 3, 1), (1, 1, 1, 1), value=3.0),
        lambda n, x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda n, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
        lambda n, x: F.adaptive_avg_pool2d(x, 3),
        lambda n, x: F.lp_pool2d(x, 2.0, 2),
        lambda n, x: x.transpose(2, 3).roll(1, 2)[..., ::2],
        lambda n, x: torch.cat([x[..., ::2], x[..., 1::2]], 1),
        lambda n, x: x.repeat(1, 2, 1, 1),
        lambda n, x: x.repeat_interleave(2, 1),
        lambda n, x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2),
        lambda n, x: torch.stack([x, x.relu()], 2).sum(2),
        lambda n, x: x.flatten(2).unflatten(2, (8, 8)),
        lambda n, x: x.reshape(len(x), -1, 64).permute(0, 2, 1).transpose(1, 2).view_as(x),
        lambda n, x: F.batch_norm(x, None, None, training=True),
        lambda n, x: F.instance_norm(x),
        lambda n, x: F.dropout2d(x, 0.5, training=True),
        lambda n, x: x.to(torch.float64).float().contiguous(memory_format=torch.channels_last),
        lambda n, x: x if x.shape[2] > 4 else x[:, :3],
        lambda n, x: sum([x, x.relu(), x.square()]),
        lambda n, x: torch.no_grad()(lambda: x.clone())(),
        lambda n, x: x * torch.tensor(0.5),
    ],
)
def test_these_keep_channels_apart(call) -> None:
    network = settle(between(call))
    prunable = found(network)
    assert [group.name for group in prunable.groups] == ["a"]
    assert prunable.groups[0].units == 6
    assert not prunable.unfollowed


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda n, x: x.sort(1)[0], "sort at Net cannot be followed"),
        (lambda n, x: x.cumsum(1), "cumsum at Net cannot be followed"),
        (lambda n, x: x[:, [5, 4, 3, 2, 1, 0]], "index at Net cannot be followed"),
        (lambda n, x: F.unfold(x, 1).view_as(x), "im2col at Net cannot be followed"),
        (lambda n, x: torch.einsum("bchw,bdhw->bdhw", x, x), "mixes them all (product at Net)"),
        (lambda n, x: (x.flatten(2) @ x.flatten(2).mT)[..., None], "mixes them all (product"),
    ],
)
def test_what_is_not_known_protects_and_is_named(call, reason) -> None:
    network = settle(between(call))
    assert reason in reasons(network)["a"]
    if "cannot" in reason:
        (operation,) = found(network).unfollowed
        assert f"{operation} cannot be followed".startswith(reason)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda n, x: x + torch.ones(6, 1, 1), "add at Net meets channels that must stay"),
        (lambda n, x: x + torch.arange(6).view(6, 1, 1), "add at Net meets"),
        (lambda n, x: x * n.a.weight[:, :1, :1, 0], "a.weight enters a computation at Net"),
        (lambda n, x: x * n.a.weight.abs().mean(), "a.weight enters a computation at Net"),
        (lambda n, x: x.softmax(1), "hang together: Net: mixes them all (softmax at Net)"),
        (lambda n, x: x - x.mean(1)[:, None], "mean over channels at Net counts them"),
        (lambda n, x: x / x.sigmoid().norm(dim=1, keepdim=True), "div at Net spreads them"),
        (lambda n, x: x.amax(1, keepdim=True).expand_as(x), "hang together"),
        (lambda n, x: F.local_response_norm(x, 3), "avg_pool3d at Net mixes them"),
        (lambda n, x: F.group_norm(x, 3), "num_groups=3"),
        (lambda n, x: x.view(len(x), 6, 8, 8), "shape '[1, 6, 8, 8]' is invalid"),
        (lambda n, x: torch.cat(x.split([2, 4], 1)[::-1], 1), "split_sizes"),
        (lambda n, x: x[:, 0:1] * x, "mul at Net spreads them over channels"),
        (lambda n, x: x.relu() * x.shape[1] ** -0.5, "mul computes with 0.57735 instead of 0.40"),
        (lambda n, x: x * torch.tensor(x.shape[1] / 6), "mul computes with 0.5 instead of 1"),
        (lambda n, x: x * torch.full((1,), x.shape[1]), "full computes with 3 instead of 6"),
        (lambda n, x: x.relu() if x.shape[1] == 6 else x, "runs other operations"),
        (lambda n, x: n.a(x[:, :3]) if x.shape[1] == 6 else x, "a reads channels that must stay"),
    ],
)
def test_what_depends_on_all_channels_or_on_their_number_protects_them(call, reason) -> None:
    assert reason in reasons(settle(between(call)))["a"]


def test_a_write_into_a_view_is_followed() -> None:
    def call(network, x):
        y = network.a(x)
        y[:, :3] = network.c(x)
        return network.b(y)

    network = Net(call, a=conv(3, 6), b=conv(6, 2), c=conv(3, 3))
    assert found(network).unfollowed == ()
    assert "smaller, it does not run" in reasons(network)["a"]  # 3 is written into the code


class Standardized(nn.Conv2d):
    """A convolution with weight standardization (NFNet)."""

    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) * variance.rsqrt(), self.bias)


def test_standardized_weights_are_made_plain() -> None:
    network = nn.Sequential(conv(3, 4), nn.ReLU(), Standardized(4, 4, 1), conv(4, 6), tail(6, 2))
    prunable = found(network)
    assert [group.name for group in prunable.groups] == ["0", "2", "3"]
    network = lively(network, batch(3, 8, 8))
    plan = secateur.plan_removal(network, batch(3, 8, 8), 0.5, round_to=1)
    removed, masked = secateur.remove(network, plan), secateur.apply_masks(network, plan)
    assert type(removed[2]) is nn.Conv2d
    assert removed[2].weight.shape == (2, 2, 1, 1)
    assert_same(masked, removed, batch(3, 8, 8), 1e-12)


@torch.no_grad()
def test_standardized_weights_are_recognized_where_gradients_are_off() -> None:
    network = nn.Sequential(conv(3, 4), nn.ReLU(), Standardized(4, 4, 1), conv(4, 6), tail(6, 2))
    assert [group.name for group in found(network).groups] == ["0", "2", "3"]


def test_weights_that_depend_on_the_input_stay_with_what_they_read() -> None:
    class Dynamic(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight * x.mean(), self.bias)

    network = nn.Sequential(conv(3, 4), nn.ReLU(), Dynamic(4, 4, 1), conv(4, 6), tail(6, 2))
    prunable = found(network)
    assert [group.name for group in prunable.groups] == ["3"]
    assert prunable.unfollowed == ("computed weights at 2",)
    assert "2 counts them" in reasons(network)["0"]
    assert reasons(network)["2"] == "the network does not call it as a layer"


def test_attention_shrinks_with_the_channels_that_it_reads() -> None:
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 2)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

        def forward(self, x):
            return self.head(self.layer(self.embed(x).flatten(2).mT).mean(1))

    prunable = found(Attention())
    names = [group.name for group in prunable.groups]
    assert names == ["embed", "layer.self_attn", "layer.linear1"]
    assert prunable.unfollowed == ()


def test_mixing_tokens_keeps_the_hidden_tokens_but_not_the_channels() -> None:
    def call(network, x):
        tokens = network.embed(x).flatten(2)
        return network.head((tokens + network.b(network.a(tokens).relu())).mean(2))

    parts = {"embed": nn.Conv2d(3, 6, 4, 4), "a": nn.Linear(4, 10), "b": nn.Linear(10, 4)}
    network = Net(call, head=nn.Linear(6, 2), **parts)
    assert [(group.name, group.units) for group in found(network).groups] == [("embed", 6)]
    assert reasons(network)["a"] == "a mixes positions of channels"
    network = lively(network, batch(3, 8, 8))
    plan = secateur.plan_removal(network, batch(3, 8, 8), 0.5, "random", round_to=1)
    removed = secateur.remove(network, plan)
    assert (removed.embed.out_channels, removed.a.out_features) == (3, 10)
    assert_same(secateur.apply_masks(network, plan), removed, batch(3, 8, 8))


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor


class Plain:
    def __init__(self, logits):
        self.parts = {"logits": [logits]}


@pytest.mark.parametrize("wrap", [Answer, Plain, lambda y: {"y": (y,)}, lambda y: [y, None, 3]])
def test_classes_stay_however_they_are_wrapped(wrap) -> None:
    network = Net(lambda n, x: wrap(n.b(n.a(x))), a=conv(3, 4), b=conv(4, 5))
    assert [group.name for group in found(network).groups] == ["a"]
    assert reasons(network) == {"b": "they are the network's output"}


def test_a_head_of_training_alone_is_seen() -> None:
    def call(network, x):
        x = network.a(x)
        return (network.b(x), network.aux(x)) if network.training else network.b(x)

    network = Net(call, a=conv(3, 4), b=conv(4, 5), aux=conv(4, 5)).eval()
    (group,) = found(network).groups
    assert "aux.weight" in {member.axis.tensor for member in group.members}
    assert set(reasons(network)) == {"b", "aux"}


def test_layers_left_out_at_random_do_not_confuse_it() -> None:
    def call(network, x):
        x = network.a(x)
        for _ in range(8):
            if not network.training or random.random() < 0.5:
                x = x + network.b(x).relu()
        return network.c(x)

    network = Net(call, a=conv(3, 4), b=conv(4, 4), c=conv(4, 2))
    for _ in range(4):
        assert [group.name for group in found(network).groups] == ["a"]


def test_tensors_that_are_no_buffers_and_what_layers_hold_do_no_harm() -> None:
    network = Net(lambda n, x: n.b(n.a(x) * n.kept), a=conv(3, 4), b=conv(4, 2))
    network.kept = torch.ones(1, 1, 8, 8)
    network.computed = network.a.weight * 2
    assert [group.name for group in found(network).groups] == ["a"]


def test_a_patched_forward_and_a_train_that_returns_nothing_are_followed() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(False)

    network = Frozen(conv(3, 4), conv(4, 2))
    network[0].forward = lambda x, layer=nn.Conv2d.forward, self=network[0]: layer(self, x)
    assert found(network).groups == ()  # it closes over the original, whose weights are unknown
    assert reasons(network)["0"] == "the network does not call it as a layer"
    network[0].forward = network[0].__class__.forward.__get__(network[0])
    assert [group.name for group in found(network).groups] == ["0"]


# ---- what cannot be followed at all


def test_a_network_that_looks_at_values_runs_on_real_tensors() -> None:
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    network = nn.Sequential(conv(3, 1), nn.Sequential(nn.ReLU(), Branching()))
    assert found(network).values
    assert not found(nn.Sequential(conv(3, 1))).values


@pytest.mark.parametrize(
    ("network", "shape", "where"),
    [
        (lambda: nn.Sequential(conv(3, 4), conv(4, 2)), (1, 4, 8, 8), "0"),
        (lambda: nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(256, 2)), (2, 3, 9, 9), "2"),
        (lambda: nn.Sequential(conv(3, 4), nn.MaxPool2d(9)), (2, 3, 8, 8), "1"),
    ],
)
def test_an_input_of_the_wrong_shape_is_refused_by_the_layer_it_fails_at(
    network, shape, where
) -> None:
    one = str((1, *shape[1:])).replace("(", r"\(").replace(")", r"\)")
    message = (
        rf"does not run on an input of shape {one} \({where}\): found RuntimeError.*\(N, C, H, W\)"
    )
    with pytest.raises(NetworkError, match=message) as caught:
        find_prunable(network(), torch.zeros(*shape))
    assert "\n" not in str(caught.value)


def test_a_network_without_shapes_or_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"layer without a shape \(1.weight\); run it once"):
        found(nn.Sequential(nn.ReLU(), nn.LazyConv2d(4, 1)))
    network = nn.Sequential(conv(3, 1))
    network.generator = (number for number in range(3))
    with pytest.raises(NetworkError, match=r"cannot copy network \(Sequential\): found TypeError"):
        found(network)
