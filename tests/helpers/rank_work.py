"""What a process does in the tests of training by several: the same, whatever its number."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import shufflenet_v2_x0_5

from secateur.data import Images, Preparation
from secateur.recipe import Augment, Train
from secateur.training import ranks
from secateur.training.cpu import fast_layers
from secateur.training.loop import train
from secateur.training.synchronized import synchronized
from secateur.training.trainer import Trainer


def a_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 3),
    )  # fmt: skip


def images(count: int) -> Images:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return Images(pixels, labels, ("a", "b", "c"))


def trained(folder: Path, shards: int, kill_after: int = 0) -> dict[str, torch.Tensor]:
    """Train three epochs, in two attempts where ``kill_after`` says so."""
    config = Train(
        epochs=3, batch_size=16, learning_rate=0.1, ema=0.8, shards=shards,
        augment=Augment(flip=True, crop=1),
    )  # fmt: skip
    for attempt in range(2 if kill_after else 1):
        network = a_network()
        kept = torch.ones_like(network[0].weight, dtype=torch.bool)
        kept[::2, :, 0] = False
        with torch.no_grad():
            network[0].weight.mul_(kept)

        def stop(history: object, attempt: int = attempt) -> bool:
            return bool(kill_after) and not attempt and len(history) >= kill_after  # type: ignore[arg-type]

        average, history = train(
            network, images(67), images(30), Preparation((0.5,), (0.5,), 8), config, seed=3,
            checkpoint=folder / f"{shards}-{kill_after}.safetensors", masks={"0.weight": kept},
            stop=stop,
        )  # fmt: skip
    state = {f"network.{k}": v for k, v in network.state_dict().items()}
    state |= {f"average.{k}": v for k, v in average.state_dict().items()}
    curve = [[e.train_loss, float(e.validation_right)] for e in history]
    return {k: v.clone() for k, v in state.items()} | {"curve": torch.tensor(curve)}


def shuffled_gradients() -> dict[str, torch.Tensor]:
    """Gradients of one step of ShuffleNetV2, in double precision: branches, and no rounding."""
    torch.manual_seed(0)
    network = shufflenet_v2_x0_5(num_classes=3).double()
    config = Train(epochs=1, batch_size=8, learning_rate=1e-6)

    def loss(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network(images.double()), labels)

    trainer = Trainer(network, config, seed=0, train_step=loss)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 64, 64, generator=generator)
    labels = torch.randint(0, 3, (8,), generator=generator)
    own = slice(4 * ranks.rank(), 4 * ranks.rank() + 4) if ranks.world() > 1 else slice(0, 8)
    with fast_layers(*trainer.networks), synchronized(*trainer.networks):
        trainer.step(images[own], labels[own], 1e-6, batch=8)
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def work(rank: int, world: int, port: int, folder: str) -> None:
    """Join, train, and write what came of it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    ranks.join(torch.device("cpu"))
    out = Path(folder)
    for name, shards, kill_after in (("whole", 1, 0), ("resumed", 1, 1), ("parts", 2, 0)):
        save_file(trained(out, shards, kill_after), out / f"{name}-{rank}.safetensors")
    save_file(shuffled_gradients(), out / f"shuffled-{rank}.safetensors")
