"""Stochastic gradient descent that can be killed at any moment and resumed to the same result."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from secateur import recipe
from secateur.console import progress
from secateur.data import Images, Preparation, augment
from secateur.errors import TrainingError
from secateur.store import save_tensors
from secateur.training.cpu import fast_small_maps
from secateur.training.evaluation import correctness

GLANCE = 2000
"""Validation images looked at after each epoch but the last, which sees them all."""

TEMPERATURE = 2.0
"""What scores are divided by before they are held to a teacher's (Hinton et al. 2015, eq. 1)."""

_CHECK_EVERY = 50  # steps between looks at the loss, each of which makes a GPU wait


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: a point of the training curve."""

    epoch: int
    train_loss: float
    validation_right: int
    validation_images: int
    seconds: float
    train_right: int | None = None  # of all training images, where ``until`` asks for it


def learning_rate(config: recipe.Train, step: int, steps: int) -> float:
    """Learning rate of 0-based ``step`` out of ``steps``.

    One-cycle rises linearly from near zero to the peak over ``warmup``, then falls linearly to near
    zero (Smith & Topin 2018, without the momentum cycle).
    """
    peak = config.learning_rate
    if config.schedule == "constant":
        return peak
    done = (step + 0.5) / steps  # the middle of the step, so neither end is exactly zero
    if config.schedule == "step":
        return peak * config.step_factor ** sum(done >= at for at in config.milestones)
    if done < config.warmup:
        return peak * done / config.warmup
    return peak * (1 - done) / (1 - config.warmup)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """How far a student's probabilities are from its teacher's, in nats an image, softened.

    Kullback-Leibler at :data:`TEMPERATURE` T, times T squared, so that its gradient stays as large
    as that of the labels (Hinton et al. 2015, section 2).

    Args:
        teacher: Scores, float32 (N, classes).
        student: Scores, float32 (N, classes).
    """
    wanted, found = (F.log_softmax(s / TEMPERATURE, dim=1) for s in (teacher, student))
    return TEMPERATURE**2 * F.kl_div(found, wanted, reduction="batchmean", log_target=True)


class Trainer:
    """A network, its optimizer and its average: everything a checkpoint holds.

    Args:
        network: Trained in place.
        config: Every hyperparameter.
        seed: Decides the order of images, augmentation and dropout, epoch by epoch.
        masks: Parameter name to a bool tensor of its shape, True where a weight is kept. Masked
            weights must be zero already; their gradients are zeroed, so that neither momentum nor
            weight decay can move them.
        teacher: Another network on the same device, in inference mode, whose probabilities count
            for ``distill`` of the loss.
        distill: In [0, 1].
    """

    def __init__(
        self,
        network: nn.Module,
        config: recipe.Train,
        seed: int,
        masks: Mapping[str, Tensor] | None = None,
        teacher: nn.Module | None = None,
        distill: float = 0.0,
    ) -> None:
        self.network, self.config, self.seed = network, config, seed
        self.teacher, self.distill = teacher, distill
        self.average = copy.deepcopy(network).eval() if config.ema else network
        parameters = dict(network.named_parameters())
        device = next(iter(parameters.values())).device
        masks = masks or {}
        self._masked = [parameters[name] for name in masks]
        self._kept = [mask.to(device, torch.float32) for mask in masks.values()]
        decayed = [p for p in parameters.values() if config.decay_norms or p.ndim > 1]
        spared = [p for p in parameters.values() if not config.decay_norms and p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": spared, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
        )
        self.history: list[Epoch] = []
        self._steps = 0

    def step(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Take one step and return the loss, a scalar tensor, detached.

        Args:
            images: Prepared float32, shape (N, C, R, R).
            labels: int64, shape (N,).
            rate: Learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        half = self.config.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            scores = self.network(images)
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(scores.float(), labels, label_smoothing=smoothing)
        if self.teacher is not None:
            with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=half):
                wanted = self.teacher(images)
            loss = loss.lerp(divergence(wanted.float(), scores.float()), self.distill)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self._masked]
        if gradients:
            torch._foreach_mul_(gradients, self._kept)  # type: ignore[arg-type]
        self.optimizer.step()
        self._steps += 1
        if self.config.ema:
            self._follow()
        return loss.detach()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average toward the network; it follows closely at first, having no past."""
        decay = min(self.config.ema, (1 + self._steps) / (10 + self._steps))
        ours = list(self.average.state_dict().values())
        theirs = list(self.network.state_dict().values())
        floats = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)

    def save(self, path: Path) -> None:
        """Write a checkpoint; the file is whole or not there."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.config.ema:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        state = {"steps": self._steps, "history": [vars(epoch) for epoch in self.history]}
        save_tensors(path, tensors, {"state": json.dumps(state)})

    def load(self, path: Path) -> None:
        """Go back to a checkpoint that :meth:`save` wrote."""
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

        def part(prefix: str) -> dict[str, Tensor]:
            head = prefix + "."
            return {k.removeprefix(head): v for k, v in tensors.items() if k.startswith(head)}

        self.network.load_state_dict(part("network"))
        if self.config.ema:
            self.average.load_state_dict(part("average"))
        parameters = dict(self.network.named_parameters())
        for name, momentum in part("momentum").items():
            like = parameters[name]
            self.optimizer.state[like]["momentum_buffer"] = torch.empty_like(like).copy_(momentum)
        self._steps = state["steps"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]

    def run_epoch(self, images: Images, prepare: Preparation, tick: object) -> float:
        """Go through ``images`` once, in an order of this epoch's own, and return the mean loss.

        Raises:
            TrainingError: The loss is no longer finite.
        """
        epoch, config = len(self.history), self.config
        size = min(config.batch_size, len(images))
        steps = len(images) // size
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=generator).to(images.labels.device)
        self.network.train()
        total = torch.zeros((), device=images.labels.device)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed * 100_003 + epoch)  # dropout draws from here
            for step in range(steps):
                chosen = order[step * size : (step + 1) * size]
                pixels = augment(images.pixels[chosen], config.augment, generator)
                rate = learning_rate(config, epoch * steps + step, config.epochs * steps)
                total += self.step(prepare(pixels), images.labels[chosen], rate)
                tick.advance()  # type: ignore[attr-defined]
                if (step + 1) % _CHECK_EVERY == 0 or step + 1 == steps:
                    _check_finite(total, epoch)
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


def _done(history: list[Epoch], config: recipe.Train, images: int) -> bool:
    """Whether a training has ended; the history alone decides, so that a resumed one knows."""
    if not history:
        return False
    return len(history) >= config.epochs or _reached(history[-1].train_right, config, images)


def _reached(right: int | None, config: recipe.Train, images: int) -> bool:
    if right is None or config.until is None:
        return False
    return 100 * right >= config.until * images


def train(
    network: nn.Module,
    training: Images,
    validation: Images,
    prepare: Preparation,
    config: recipe.Train,
    *,
    seed: int,
    checkpoint: Path,
    masks: Mapping[str, Tensor] | None = None,
    teacher: nn.Module | None = None,
    distill: float = 0.0,
    label: str = "train",
) -> tuple[nn.Module, list[Epoch]]:
    """Train ``network`` in place, from ``checkpoint`` where that exists.

    Args:
        network: On the device to train on, channels last.
        training: Images on the same device.
        validation: Images on the same device; only looked at, never chosen by.
        prepare: From stored pixels to the network's input.
        config: Every hyperparameter.
        seed: The same seed gives the same result on the same machine, killed and resumed or not.
        checkpoint: Written after each epoch.
        masks: See :class:`Trainer`.
        teacher: See :class:`Trainer`.
        distill: See :class:`Trainer`.
        label: Stands before the progress.

    Returns:
        The network to keep, in inference mode (the average where ``config.ema`` is set), and its
        training curve.

    Raises:
        TrainingError: The loss is no longer finite.
    """
    trainer = Trainer(network, config, seed, masks, teacher, distill)
    if checkpoint.exists():
        trainer.load(checkpoint)
    steps = len(training) // min(config.batch_size, len(training))
    behind = steps * len(trainer.history)
    with progress(label, steps * config.epochs, behind) as tick, fast_small_maps(network):
        while not _done(trainer.history, config, len(training)):
            start = time.monotonic()
            loss = trainer.run_epoch(training, prepare, tick)
            epoch, fitted = len(trainer.history) + 1, None
            if config.until is not None:
                fitted = int(correctness(trainer.average, training, prepare).sum())
            last = epoch == config.epochs or _reached(fitted, config, len(training))
            seen = validation if last else validation.spread(GLANCE)
            right = int(correctness(trainer.average, seen, prepare).sum())
            spent = time.monotonic() - start
            trainer.history.append(Epoch(epoch, loss, right, len(seen), spent, fitted))
            trainer.save(checkpoint)
            note = f"epoch {epoch} loss {loss:.3f} validation {100 * right / len(seen):.2f} %"
            tick.advance(0, note)
    return trainer.average.eval(), trainer.history
