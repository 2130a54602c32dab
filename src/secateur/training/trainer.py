"""Steps and epochs of stochastic gradient descent, and the state of checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import recipe
from secateur.data import Images, Preparation, augment, distort, mix
from secateur.data.images import in_turn
from secateur.errors import RecipeError, TrainingError
from secateur.recipe import content_id
from secateur.training import ranks
from secateur.training.checkpoint import read_checkpoint, write_checkpoint
from secateur.training.precision import Precision, autocast
from secateur.training.shards import Shards

TEMPERATURE = 2.0
"""Distillation temperature (Hinton et al. 2015, eq. 1)."""

TrainStep = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From the network, prepared images (N, C, R, R) and labels (N,) to the loss, a scalar tensor."""

_APART = 2**40  # between the seeds of processes that train together
_CHECK_EVERY = 50  # steps between reads of the loss, each of which synchronizes a GPU


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch: a point of the training curve."""

    epoch: int
    train_loss: float
    validation_right: int
    validation_images: int
    seconds: float
    train_right: int | None = None  # on all training images, if ``until`` is set

    @property
    def metrics(self) -> dict[str, float]:
        """Values to log."""
        accuracy = self.validation_right / self.validation_images
        return {"loss": self.train_loss, "validation_accuracy": accuracy}


def learning_rate(config: recipe.Train, step: int, steps: int) -> float:
    """Learning rate of 0-based ``step`` out of ``steps``.

    One-cycle rises linearly from near zero to the peak over ``warmup``, then falls linearly to near
    zero (Smith & Topin 2018, without the momentum cycle). Cosine rises in the same way and falls as
    half a cosine (Loshchilov & Hutter 2017, equation 5, without restarts).
    """
    peak = config.learning_rate
    if config.schedule == "constant":
        return peak
    done = (step + 0.5) / steps  # the middle of the step, so that neither end is exactly zero
    if config.schedule == "cosine":
        return peak * min(1.0, done / max(config.warmup, 1e-9)) * _cosine(done, config.warmup)
    if config.schedule == "step":
        return peak * config.step_factor ** sum(done >= at for at in config.milestones)
    if done < config.warmup:
        return peak * done / config.warmup
    return peak * (1 - done) / (1 - config.warmup)


@dataclass(frozen=True)
class Teacher:
    """A network whose probabilities are part of the loss.

    Attributes:
        network: The teacher, on the images' device, in inference mode.
        prepare: Maps stored pixels to its input.
        share: Fraction of the loss, in (0, 1].
        precision: Arithmetic of its forward pass.
    """

    network: nn.Module
    prepare: Preparation
    share: float
    precision: Precision = "fp32"

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Return scores, float32 (N, classes), of uint8 ``pixels``."""
        with autocast(pixels.device, self.precision):
            return self.network(self.prepare(pixels)).float()


def _cosine(done: float, warmup: float) -> float:
    """Factor of the peak rate after the rise, in [0, 1]."""
    return 0.5 * (1 + math.cos(math.pi * max(0.0, done - warmup) / (1 - warmup)))


_SLOTS = {
    "momentum_buffer": "momentum",
    "exp_avg": "first_moment",
    "exp_avg_sq": "second_moment",
    "step": "step",
}
"""From optimizer state of a parameter to its name in a checkpoint."""


def _optimizer(
    config: recipe.Train, decayed: Sequence[nn.Parameter], spared: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov
    )


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Softened divergence of a student's probabilities from its teacher's, in nats per image.

    Kullback-Leibler divergence at :data:`TEMPERATURE` T, times T squared to keep the magnitude of
    gradients (Hinton et al. 2015, section 2).

    Args:
        teacher: Scores, float32 (N, classes).
        student: Scores, float32 (N, classes).
    """
    target, output = (F.log_softmax(s / TEMPERATURE, dim=1) for s in (teacher, student))
    return TEMPERATURE**2 * F.kl_div(output, target, reduction="batchmean", log_target=True)


class Trainer:
    """A network, its optimizer and its average: the state of a checkpoint.

    Args:
        network: Trained in place.
        config: Hyperparameters.
        seed: Seed of the order of images, augmentation and dropout in each epoch.
        masks: From parameter name to a bool tensor of its shape, True where a weight is kept.
            Masked weights must be zero; their gradients are zeroed, so that they stay zero under
            momentum and weight decay.
        teacher: Its probabilities are part of the loss; None for labels only.
        train_step: Returns the loss in place of cross-entropy and teacher.
    """

    def __init__(
        self,
        network: nn.Module,
        config: recipe.Train,
        seed: int,
        masks: Mapping[str, Tensor] | None = None,
        teacher: Teacher | None = None,
        train_step: TrainStep | None = None,
    ) -> None:
        self.network, self.config, self.seed, self.teacher = network, config, seed, teacher
        self.train_step = train_step
        self.average = copy.deepcopy(network).eval() if config.ema else network
        parts = config.shards if config.shards > 1 else ranks.world()
        self._shards = Shards(network, parts) if parts > 1 else None
        self._copies = self._shards.copies if self._shards else [network]
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        device = next(iter(parameters.values())).device
        masks = masks or {}
        self._masked = [parameters[name] for name in masks]
        self._kept = [mask.to(device, torch.float32) for mask in masks.values()]
        decayed = [p for p in parameters.values() if config.decay_norms or p.ndim > 1]
        spared = [p for p in parameters.values() if not config.decay_norms and p.ndim <= 1]
        self.optimizer = _optimizer(config, decayed, spared)
        self.history: list[Epoch] = []
        self._steps = 0

    @property
    def networks(self) -> list[nn.Module]:
        """All networks of steps and evaluations, except the teacher."""
        return self._copies if self.average is self.network else [*self._copies, self.average]

    def step(
        self,
        images: Tensor,
        labels: Tensor,
        rate: float,
        pixels: Tensor | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """Take one step and return the loss, a scalar tensor, detached.

        Args:
            images: Prepared float32, shape (N, C, R, R); this process's part of the batch.
            labels: int64, shape (N,); or a probability for each class, float32 (N, classes).
            rate: Learning rate.
            pixels: Stored pixels of ``images``, for the teacher; uint8 (N, C, H, W).
            batch: Batch size of all processes together; None for N.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        def loss_of(network: nn.Module, part: slice) -> Tensor:
            stored = pixels[part] if pixels is not None else None
            return self._loss(network, images[part], labels[part], stored)

        self.optimizer.zero_grad(set_to_none=True)
        if self._shards is None:
            loss = loss_of(self.network, slice(None))
            loss.backward()
        else:
            loss = self._shards.backward(loss_of, batch or len(images))
        gradients = [p.grad for p in self._masked]
        if gradients:
            torch._foreach_mul_(gradients, self._kept)  # type: ignore[arg-type]
        self.optimizer.step()
        self._steps += 1
        if self.config.ema:
            self._follow()
        return loss.detach()

    def _loss(
        self, network: nn.Module, images: Tensor, labels: Tensor, pixels: Tensor | None
    ) -> Tensor:
        if self.train_step is not None:
            return self.train_step(network, images, labels)
        try:
            with autocast(images.device, self.config.precision):
                scores = network(images).float()
        except ValueError as error:
            if "per channel" not in str(error):
                raise
            raise RecipeError(
                "batches too small for batch-norm", where="train.batch_size",
                expected="more than one value per channel", found=f"{len(images)} at once",
                remedy="use larger batches, fewer shards, or network.batch_norm = \"identity\"",
            ) from error  # fmt: skip
        target = self.teacher(pixels) if self.teacher and pixels is not None else None
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(scores, labels, label_smoothing=smoothing)
        if self.teacher is None or target is None:
            return loss
        return loss.lerp(divergence(target, scores), self.teacher.share)

    @torch.no_grad()
    def _follow(self) -> None:
        """Update the average of weights; early updates have a smaller decay."""
        decay = min(self.config.ema, (1 + self._steps) / (10 + self._steps))
        averages = list(self.average.state_dict().values())
        values = list(self.network.state_dict().values())
        floats = [(a, b) for a, b in zip(averages, values, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)

    @property
    def identity(self) -> str:
        """Content id of this training: hyperparameters, seed and network."""
        shapes = {name: list(p.shape) for name, p in self.network.named_parameters()}
        config = self.config.model_dump(mode="json", exclude_defaults=True)
        return content_id({"train": config, "seed": self.seed, "shapes": shapes})

    def save(self, path: Path) -> None:
        """Write a checkpoint, in process 0 only; an existing one becomes the preceding one."""
        if ranks.rank():
            return
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.config.ema:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            slots = self.optimizer.state[parameter]
            for slot, prefix in _SLOTS.items():
                if slots.get(slot) is not None:
                    tensors[f"{prefix}.{name}"] = slots[slot]
        state = {"steps": self._steps, "history": [vars(epoch) for epoch in self.history]}
        write_checkpoint(path, self.identity, tensors, state)

    def load(self, path: Path) -> None:
        """Load the newest valid checkpoint of :meth:`save`, if there is one."""
        read = ranks.agreed(None if ranks.rank() else read_checkpoint(path, self.identity))
        if read is None:
            return
        tensors, state = read

        def part(prefix: str) -> dict[str, Tensor]:
            head = prefix + "."
            return {k.removeprefix(head): v for k, v in tensors.items() if k.startswith(head)}

        self.network.load_state_dict(part("network"))
        if self.config.ema:
            self.average.load_state_dict(part("average"))
        parameters = dict(self.network.named_parameters())
        for slot, prefix in _SLOTS.items():
            for name, stored in part(prefix).items():
                like = parameters[name]
                # Moments have their parameter's memory format; step counts have none.
                value = torch.empty_like(like).copy_(stored) if stored.ndim else stored
                self.optimizer.state[like][slot] = value
        self._steps = state["steps"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]

    def run_epoch(self, images: Images, prepare: Preparation, tick: object) -> float:
        """Train on all ``images`` once, in this epoch's order; return the mean loss.

        Raises:
            TrainingError: The loss is no longer finite.
        """
        epoch, config = len(self.history), self.config
        size = min(config.batch_size, len(images))
        steps = len(images) // size
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=generator).to(images.labels.device)
        for network in self._copies:
            network.train()
        seed = self.seed * 100_003 + epoch
        total = torch.zeros((), device=images.labels.device)
        drawing = self._shards.dropout(seed) if self._shards else nullcontext()
        own = self._shards.own(size) if self._shards else slice(0, size)
        parts = [order[step * size : (step + 1) * size][own] for step in range(steps)]
        with torch.random.fork_rng(), drawing:
            torch.manual_seed(seed + _APART * ranks.rank())  # for dropout and distort
            for step, pixels in enumerate(in_turn(images.pixels, parts)):
                pixels = augment(pixels, config.augment, generator, size, own)
                pixels = distort(pixels, config.augment)
                pixels, labels = mix(
                    pixels, images.labels[parts[step]], len(images.classes), config.augment
                )
                rate = learning_rate(config, epoch * steps + step, config.epochs * steps)
                total += self.step(prepare(pixels), labels, rate, pixels, size)
                tick.advance()  # type: ignore[attr-defined]
                if (step + 1) % _CHECK_EVERY == 0 or step + 1 == steps:
                    _check_finite(total, epoch)
        ranks.equalize_buffers(*dict.fromkeys((self.network, self.average)))
        return total.item() / steps


def _check_finite(total: Tensor, epoch: int) -> None:
    if not math.isfinite(total.item()):
        raise TrainingError(
            "the loss is not finite",
            where=f"epoch {epoch + 1}",
            found=total.item(),
            remedy="try a third of train.learning_rate, a longer train.warmup, "
            "or train.precision = 'fp32'",
        )
