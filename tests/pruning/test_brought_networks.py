"""Networks as people bring them: each loses half its width, and computes what its mask does."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.nn.utils import prune as torch_prune

import secateur
from helpers.halving import IMAGES, Between, halve, parameters
from secateur.errors import NetworkError
from secateur.pruning.find import find_prunable
from secateur.pruning.plan import Plan
from secateur.pruning.removal import NothingRemovedWarning
from secateur.pruning.tracing.heads import separate_heads

# ---- never wrong, never silently nothing


class Picture(Tensor):
    pass


def test_classes_stay_where_the_input_is_a_subclass_of_tensor() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(5))
    network(IMAGES)
    plan = secateur.plan_removal(network, IMAGES.as_subclass(Picture), round_to=1)
    assert secateur.remove(network, plan)(IMAGES).shape == (2, 5)


def test_classes_stay_where_forward_changes_the_class_of_its_output() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.as_subclass(Tensor)

    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 6), Plain())
    plan = secateur.plan_removal(network, IMAGES, round_to=1)
    smaller = secateur.remove(network, plan)
    assert smaller(IMAGES).shape == (2, 5, 1, 1)
    assert smaller[0].out_channels == 4


def test_an_output_that_no_operation_made_is_an_error() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.held = nn.Conv2d(3, 8, 3), torch.zeros(1, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.layer(x)
            return self.held

    with pytest.raises(NetworkError, match="cannot tell which channels make an output"):
        find_prunable(Remembers(), IMAGES)


def test_an_empty_plan_says_why_and_is_an_error_where_asked() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1), nn.Conv2d(8, 5, 3))
    with pytest.warns(NothingRemovedWarning, match=r"^0 of 13 channels leave; .*0: its channels"):
        assert secateur.plan_removal(network, IMAGES) == Plan()
    with pytest.raises(NetworkError, match="nothing to remove"):
        secateur.plan_removal(network, IMAGES, strict=True)
    narrow = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3))
    with pytest.raises(NetworkError, match=r"narrowest of 8 channels; a smaller round_to"):
        secateur.plan_removal(narrow, IMAGES, round_to=16, strict=True)


def test_a_forward_that_looks_at_values_runs_on_real_tensors() -> None:
    network = Between(lambda n, x: x * 2 if float(x.sum()) > -1 else x)
    assert find_prunable(network, IMAGES).values
    halve(network, 0.35)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_module_is_refused_in_words() -> None:
    scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)), IMAGES)
    with pytest.raises(NetworkError, match="cannot prune a scripted module"):
        secateur.plan_removal(nn.Sequential(scripted), IMAGES)


def chain() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 6), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 5))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_network_is_refused_with_the_remedy() -> None:
    message = r"^cannot prune a scripted module \(.*\); prune the network before torch.jit.script"
    with pytest.raises(NetworkError, match=message):
        secateur.plan_removal(torch.jit.script(chain()), IMAGES)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantized_module_is_refused_with_the_remedy() -> None:
    quantized = torch.ao.quantization.quantize_dynamic(chain(), {nn.Linear}, dtype=torch.qint8)
    message = r"^cannot prune a quantized module \(5\); prune the network first, then quantize it$"
    for call in (secateur.plan_removal, find_prunable):
        with pytest.raises(NetworkError, match=message):
            call(quantized, IMAGES)


@pytest.mark.parametrize("wrap", [lambda n: n.state_dict(), lambda n: torch.export.export(
    n, (IMAGES,))], ids=["weights", "exported"])  # fmt: skip
def test_what_is_no_module_is_refused_in_words(wrap) -> None:
    with pytest.raises(NetworkError, match=r"not a network: expected a torch.nn.Module, found"):
        secateur.plan_removal(wrap(chain().eval()), IMAGES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_network_prepared_for_quantization_is_refused_with_the_remedy() -> None:
    network = chain().train()
    network.qconfig = torch.ao.quantization.default_qat_qconfig
    prepared = torch.ao.quantization.prepare_qat(network)
    with pytest.raises(NetworkError, match="prune the network first, then quantize it"):
        secateur.plan_removal(prepared, IMAGES)


def test_a_sum_that_is_ready_for_quantization_is_a_sum() -> None:
    """Networks of torchvision that can be quantized hold such modules as floats too."""
    add = torch.ao.nn.quantized.FloatFunctional()
    small = halve(Between(lambda n, x: n.add.add(x, x), add=add), 0.35)
    assert small.first.out_channels == 8


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda n: torch.compile(n, backend="eager")])
@pytest.mark.parametrize("run_before", [False, True])
def test_wrapped_networks_shrink_inside_their_wrapper(wrap, run_before) -> None:
    wrapped = wrap(chain())
    if run_before:
        wrapped(IMAGES)
    small = halve(wrapped, 0.35)
    assert type(small) is type(wrapped)
    assert sum(p.numel() for p in small.parameters()) < 0.35 * parameters(chain())


def test_a_compiled_part_of_a_network_shrinks() -> None:
    network = chain()
    network[3] = torch.compile(network[3], backend="eager")
    assert halve(network, 0.35)[3].out_channels == 4


# ---- weights that are computed


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: torch_prune.l1_unstructured(layer, "weight", amount=0.4),
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: parametrizations.spectral_norm(layer),
        lambda layer: spectral_norm(layer),
    ],
)
def test_computed_weights_are_made_permanent(change) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(),
                            nn.Linear(256, 5))  # fmt: skip
    change(network[0])
    change(network[2])
    network.eval()(IMAGES)
    small = halve(network, 0.6)
    assert (small[0].out_channels, small[2].in_channels) == (8, 8)
    assert isinstance(small[0].weight, nn.Parameter)


def test_gradients_of_masked_weights_are_those_of_what_they_come_from() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 6))
    torch_prune.l1_unstructured(network[0], "weight", amount=0.4)
    network(IMAGES).square().sum().backward()
    plan = secateur.plan_removal(network, IMAGES, importance="taylor", round_to=1)
    assert secateur.remove(network, plan)[0].out_channels == 4


# ---- operations


class Blur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filt", torch.ones(1, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        filters = self.filt.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), filters, groups=x.shape[1])


def write(network: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :4, 1:] = x[:, :4, :-1]
    y[:, 4:] = x[:, 4:]
    return y


def swap(network: nn.Module, x: Tensor) -> Tensor:
    y, c = torch.zeros_like(x), x.shape[1]
    y[:, : c // 2], y[:, c // 2 :] = x[:, c // 2 :], x[:, : c // 2]
    return y


def replace_part(network: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    k = network.part.in_channels
    x[:, :k] = network.part(x[:, :k])
    return x


def response_norm(network: nn.Module, x: Tensor) -> Tensor:
    energy = x.norm(p=2, dim=(2, 3), keepdim=True)
    scaled = x * (energy / (energy.mean(1, keepdim=True) + 1e-6))
    return x + network.scale.view(1, -1, 1, 1) * scaled


class Vector(nn.Module):
    """A parameter and a list of positions."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(*shape))
        self.register_buffer("order", torch.randperm(16))


@pytest.mark.parametrize(
    ("call", "parts", "most"),
    [
        (lambda n, x: n.blur(x), {"blur": Blur()}, 0.35),
        (lambda n, x: torch.einsum("nchw,dc->ndhw", x, n.v.values), {"v": Vector(16, 16)}, 0.35),
        (lambda n, x: x.movedim(1, -1).matmul(n.v.values).movedim(-1, 1), {"v": Vector(16, 16)},
         0.35),
        (lambda n, x: x[:, n.v.order], {"v": Vector(1)}, 0.35),
        (lambda n, x: x.index_select(1, torch.arange(x.shape[1] - 1, -1, -1)), {}, 0.35),
        (lambda n, x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), {}, 0.35),
        (swap, {}, 0.35),
        (replace_part, {"part": nn.Conv2d(4, 4, 3, padding=1)}, 0.35),
        (lambda n, x: n.norm(x.movedim(1, -1)).movedim(-1, 1), {"norm": nn.LayerNorm(16)}, 0.35),
        (lambda n, x: n.norm(x.movedim(1, -1)).movedim(-1, 1), {"norm": nn.RMSNorm(16)}, 0.35),
        (lambda n, x: n.norm(x), {"norm": nn.GroupNorm(1, 16)}, 0.35),
    ],
)  # fmt: skip
def test_these_operations_are_followed(call, parts, most) -> None:
    small = halve(Between(call, **parts), most)
    assert small.first.out_channels == small.second.in_channels == 8


class Parts(nn.Module):
    """Parts of the channels, whose widths a list, a tuple or a difference holds."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.width, self.part = form, 16, 4
        self.widths = [4, 12] if form == "list" else (4, 12)
        self.small, self.large = nn.Conv2d(4, 4, 1), nn.Conv2d(12, 12, 1)
        self.shape = (16, 1, 1)
        self.scale = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        sizes = [self.part, self.width - self.part] if self.form == "difference" else self.widths
        small, large = torch.split(x, sizes, 1)
        x = torch.cat([self.small(small), self.large(large)], 1)
        return x * self.scale.view(self.shape)


@pytest.mark.parametrize("form", ["list", "tuple", "difference"])
def test_widths_in_lists_tuples_and_differences_are_set(form) -> None:
    small = halve(Between(lambda n, x: n.parts(x), parts=Parts(form)), 0.35).parts
    assert (small.small.out_channels, small.large.out_channels) == (2, 6)
    assert small.shape == (8, 1, 1)
    if form == "difference":
        assert (small.width, small.part) == (8, 2)
    else:
        assert small.widths == ([2, 6] if form == "list" else (2, 6))


def test_half_of_a_width_is_a_width() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels, self.paths = 16, 2
            self.layers = nn.ModuleList(nn.Conv2d(8, 16, 1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            parts = torch.split(x, self.channels // self.paths, 1)
            return sum(layer(part) for layer, part in zip(self.layers, parts, strict=True))

    small = halve(Between(lambda n, x: n.halves(x), halves=Halves()), 0.35).halves
    assert (small.channels, small.paths) == (8, 2)


def test_a_global_response_norm_scales_what_stays() -> None:
    network = Between(response_norm)
    network.scale = nn.Parameter(torch.rand(16))
    small = halve(network, 0.35, tolerance=1e-6)  # its epsilon does not scale
    assert small.scale.shape == (8,)


@pytest.mark.parametrize(("epsilon", "shrinks"), [(1e-6, True), (1e-4, False)])
def test_only_a_small_epsilon_may_stay_uncorrected(epsilon: float, shrinks: bool) -> None:
    def norm(network: nn.Module, x: Tensor) -> Tensor:
        energy = x.norm(p=2, dim=(2, 3), keepdim=True)
        scaled = x * (energy / (energy.mean(1, keepdim=True) + epsilon))
        return network.scale.view(1, -1, 1, 1) * scaled

    network = Between(norm)
    network.scale = nn.Parameter(torch.rand(16))
    groups = {group.name for group in find_prunable(network, IMAGES).groups}
    assert ("first" in groups) == shrinks


def test_a_shift_leaves_zeros_that_any_channel_may_have() -> None:
    small = halve(Between(lambda n, x: write(n, x)), 0.75)
    assert small.second.out_channels == 8


# ---- the user's wishes


def test_layers_to_keep_and_fractions_of_single_layers() -> None:
    network = nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in ((3, 8), (8, 8), (8, 8), (8, 5))))
    for keep in (["0", "2"], [network[0], network[2]], ["[02]"]):
        smaller = secateur.prune(network, IMAGES, 0.5, round_to=1, keep=keep)
        assert [layer.out_channels for layer in smaller] == [8, 4, 8, 5]
    smaller = secateur.prune(network, IMAGES, 0.5, round_to=1, fractions={"1": 0.25, "2": 0})
    assert [layer.out_channels for layer in smaller] == [4, 6, 8, 5]
    with pytest.raises(NetworkError, match=r"no module of that name \(heads\)"):
        secateur.prune(network, IMAGES, 0.5, keep=["heads"])


def normalized() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    return nn.Sequential(*layers, nn.Conv2d(8, 5, 1)).eval()


def test_a_norm_stands_for_the_channels_that_it_normalizes() -> None:
    network = normalized()

    def widths(**options) -> tuple[int, int]:
        smaller = secateur.prune(network, IMAGES, 0.5, round_to=1, **options)
        return smaller[0].out_channels, smaller[3].out_channels

    assert widths(keep=["1"]) == widths(keep=[network[1]]) == (8, 4)
    assert widths(fractions={"1": 0.25}) == (6, 4)


def test_to_keep_the_network_itself_is_to_keep_all() -> None:
    network = normalized()
    with pytest.warns(NothingRemovedWarning, match="the options keep it"):
        assert secateur.plan_removal(network, IMAGES, round_to=1, keep=[network]) == Plan()


@pytest.mark.parametrize("wish", [{"keep": ["2"]}, {"fractions": {"2": 0.25}}])
def test_a_wish_for_a_module_without_channels_of_its_own_is_refused(wish) -> None:
    with pytest.raises(NetworkError, match=r"module has no parameters \(2\): .* found ReLU"):
        secateur.plan_removal(normalized(), IMAGES, round_to=1, **wish)


def test_fractions_of_single_layers_hold_in_a_global_choice() -> None:
    options = {"round_to": 1, "scope": "global", "fractions": {"0": 0.25}}
    smaller = secateur.prune(normalized(), IMAGES, 0.5, **options)
    assert smaller[0].out_channels == 6
    assert smaller[3].out_channels < 8


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.meta = nn.Conv2d(3, 16, 3), nn.Linear(5, 16)
        self.head, self.aux = nn.Linear(32, 4), nn.Linear(16, 4)

    def forward(self, image: Tensor, facts: Tensor) -> dict[str, Tensor]:
        body = F.relu(self.body(image)).mean((2, 3))
        both = torch.cat([body, F.relu(self.meta(facts))], 1)
        return {"out": self.head(both), "aux": self.aux(body)}


def test_several_inputs_and_outputs() -> None:
    network, facts = TwoInputs(), torch.randn(2, 5)
    halve(network, 0.6, IMAGES, facts)
    example = {"image": IMAGES.double(), "facts": facts.double()}
    smaller = secateur.prune(network.double(), example, parameters=0.6, round_to=1)
    assert smaller(**example)["aux"].shape == (2, 4)
    with pytest.raises(NetworkError, match="example input is not a tensor"):
        secateur.plan_removal(network, "image")


def test_frozen_layers_stay_where_gradients_decide() -> None:
    network = nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in ((3, 8), (8, 8), (8, 5))))
    network[0].requires_grad_(False)
    network(IMAGES).square().sum().backward()
    smaller = secateur.prune(network, IMAGES, 0.5, importance="taylor", round_to=1)
    assert [layer.out_channels for layer in smaller] == [8, 4, 5]
    assert [p.requires_grad for p in smaller.parameters()] == [False] * 2 + [True] * 4


def test_layers_that_are_all_frozen_have_no_gradients() -> None:
    network = normalized().requires_grad_(False)
    with pytest.raises(NetworkError, match=r"all layers are frozen.*another importance"):
        secateur.plan_removal(network, IMAGES, importance="taylor")


# ---- attention


class Attention(nn.Module):
    """Tokens of 32 channels; 8 heads of queries, ``groups`` of keys and values."""

    def __init__(self, form: str, groups: int) -> None:
        super().__init__()
        self.form, self.heads, self.groups, self.dim = form, 8, groups, 4
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 4, 32))
        self.norm = nn.LayerNorm(32)
        self.q = nn.Linear(32, 32)
        self.kv = nn.Linear(32, 2 * groups * 4)
        self.table = nn.Parameter(torch.randn(7, 8))
        self.register_buffer("index", (torch.arange(4)[:, None] - torch.arange(4)).abs())
        self.proj, self.head = nn.Linear(32, 32), nn.Linear(32, 5)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        y = self.norm(x)
        batch, tokens, _ = y.shape
        q = self.q(y).view(batch, tokens, self.heads, self.dim).transpose(1, 2)
        kv = self.kv(y).view(batch, tokens, 2, self.groups, self.dim).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)
        if self.groups < self.heads:
            k, v = (each.repeat_interleave(self.heads // self.groups, 1) for each in (k, v))
        bias = self.table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1)
        if self.form == "fused":
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        else:
            z = ((q @ k.mT) * math.sqrt(1 / 4) + bias).softmax(-1) @ v
        x = x + self.proj(z.transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


@pytest.mark.parametrize("form", ["fused", "plain"])
@pytest.mark.parametrize("attention", ["width", "heads"])
@pytest.mark.parametrize("groups", [8, 4])
def test_attentions_lose_width_or_heads(form, attention, groups) -> None:
    small = halve(Attention(form, groups), 0.35, attention=attention)
    halved = (4, 4) if attention == "heads" else (8, 2)
    assert (small.heads, small.dim) == halved
    assert small.proj.out_features == small.patch.out_channels == 16
    assert small.table.shape == (7, halved[0])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class Own(nn.Module):
    """torch's own attention, packed or not, with its weights asked for or not."""

    def __init__(self, packed: bool, weights: bool, first: bool) -> None:
        super().__init__()
        widths = {} if packed else {"kdim": 24, "vdim": 20}
        self.weights, self.first = weights, first
        self.patch = nn.Conv2d(3, 32, 4, 4)
        if not packed:
            self.k, self.v = nn.Linear(32, 24), nn.Linear(32, 20)
        self.attention = nn.MultiheadAttention(32, 8, batch_first=first, **widths)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).movedim(2, 1 if self.first else 0)
        y = self.norm(x)
        packed = self.attention.in_proj_weight is not None
        k, v = (y, y) if packed else (self.k(y), self.v(y))
        x = x + self.attention(y, k, v, need_weights=self.weights)[0]
        return self.head(x.mean(1 if self.first else 0))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_torchs_own_attention_loses_heads(packed, weights, first) -> None:
    small = halve(Own(packed, weights, first), 0.35, attention="heads")
    assert (small.attention.num_heads, small.attention.head_dim) == (4, 4)
    assert small.attention.out_proj.weight.shape == (16, 16)


def test_heads_of_torchs_own_attention_leave_alone() -> None:
    network = Own(True, False, True)
    kept = ["patch", "norm"]
    small = halve(network, 0.8, attention="heads", keep=kept)
    assert small.attention.in_proj_weight.shape == (48, 32)
    assert small.attention.out_proj.weight.shape == (32, 16)
    again = secateur.prune(small, IMAGES.double(), 0.5, attention="heads", round_to=1, keep=kept)
    assert (again.attention.num_heads, again.attention.head_dim) == (2, 4)
    encoder = Encoder().eval()
    plan = secateur.plan_removal(
        encoder, IMAGES, 0.5, attention="heads", round_to=1, keep=["patch"]
    )
    smaller = secateur.remove(encoder, plan)
    with torch.inference_mode():  # where torch's own layer would take its fused form
        expected = secateur.apply_masks(encoder, plan)(IMAGES)
        torch.testing.assert_close(smaller(IMAGES), expected)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_channels_of_heads_shrink_apart_from_the_embedding(weights, first) -> None:
    network = Own(True, weights, first)
    steps = {group.name: group.steps for group in find_prunable(network, IMAGES).groups}
    assert steps["attention"] == 4  # any number of channels of each head
    small = halve(network, 0.8, keep=["patch", "norm"])
    assert (small.attention.num_heads, small.attention.head_dim) == (8, 2)
    assert small.attention.in_proj_weight.shape == (48, 32)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("masks", ["none", "shared", "each", "padding", "both"])
@pytest.mark.parametrize("weights", [True, False])
def test_separate_heads_compute_what_torchs_own_attention_does(heads, masks, weights) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, heads, batch_first=True).double().eval()
    x, y = torch.randn(2, 5, 8).double(), torch.randn(2, 5, 8).double()
    options: dict = {"need_weights": weights}
    if masks in ("shared", "both"):
        options["attn_mask"] = torch.ones(5, 5).triu(1).bool()
    if masks == "each":
        options["attn_mask"] = torch.randn(2 * heads, 5, 5).double()
    if masks in ("padding", "both"):
        options["key_padding_mask"] = torch.tensor([[False] * 4 + [True], [False] * 5])
    calls = [((x, x, x), options), ((x, y, y), options), ((x, y, x), options)]
    if masks == "none":
        calls.append(((x[0], x[0], x[0]), options))
    expected = [layer(*args, **named) for args, named in calls]
    separate_heads(layer)
    for (args, named), (out, attention) in zip(calls, expected, strict=True):
        ours, ours_attention = layer(*args, **named)
        torch.testing.assert_close(ours, out, rtol=0, atol=1e-12)
        assert (attention is None) == (ours_attention is None)
        if attention is not None:
            torch.testing.assert_close(ours_attention, attention, rtol=0, atol=1e-12)


class Rotary(nn.Module):
    """Queries and keys are turned by their position, in pairs of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.qkv, self.proj, self.head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 5)

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] / 10 ** torch.arange(0, 1, 0.125)
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        return x * angles.cos() + turned * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.head((x + self.proj(y.transpose(1, 2).flatten(2))).mean(1))


def test_rotary_attention_loses_heads() -> None:
    small = halve(Rotary(), 0.35, attention="heads")
    assert (small.heads, small.qkv.out_features) == (2, 48)


def test_numbers_along_a_head_that_depend_on_its_width_hold_it() -> None:
    def call(network: nn.Module, x: Tensor) -> Tensor:
        y = x.movedim(1, -1).unflatten(-1, (4, -1))
        return (y * torch.arange(1.0, y.shape[-1] + 1)).flatten(-2).movedim(-1, 1)

    small = halve(Between(call), 0.7)
    assert (small.first.out_channels, small.second.out_channels) == (16, 8)


def test_torchs_own_attention_shrinks_with_what_it_reads() -> None:
    small = halve(Encoder(), 0.35)
    attention = small.layer.self_attn
    assert (attention.embed_dim, attention.head_dim, attention.num_heads) == (16, 4, 4)
