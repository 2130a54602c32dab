"""The stage ``teacher``, and the training function of all stages."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from secateur import recipe
from secateur.data import Preparation
from secateur.models.teacher import build_teacher
from secateur.pipeline.chain import Chain, changed_fields
from secateur.pruning.masks import Masks
from secateur.store import save_tensors, write_json
from secateur.training.checkpoint import remove_checkpoints
from secateur.training.loop import train
from secateur.training.trainer import Teacher

WHITENED = 5000
"""Number of training images whose patches determine the teacher's whitening layer."""


def teacher_key(chain: Chain) -> dict[str, Any]:
    """Key of the teacher."""
    return {"teacher": changed_fields(_config(chain))}


def make_teacher(chain: Chain, folder: Path) -> None:
    """Train the teacher at the data set's own resolution."""
    config = _config(chain)
    train_into(
        chain, folder, _fresh_teacher(chain), config.train, "teacher",
        prepare=_preparation(chain), seed=config.seed,
    )  # fmt: skip


def taught_by_teacher(chain: Chain, share: float) -> Teacher:
    """The trained teacher, or None if its ``share`` of the loss is 0."""
    network = _fresh_teacher(chain)
    network.load_state_dict(chain.stage("teacher").tensors("weights.safetensors"))
    precision = _config(chain).train.precision
    return Teacher(network.eval(), _preparation(chain), share, precision)


def _config(chain: Chain) -> recipe.Teacher:
    assert chain.recipe.teacher is not None  # the recipe is valid
    return chain.recipe.teacher


def _fresh_teacher(chain: Chain) -> nn.Module:
    training, _ = chain.parts
    sample = _preparation(chain)(training.spread(WHITENED).pixels[:]).cpu()
    return chain.place(build_teacher(_config(chain), sample, len(chain.data_facts["classes"])))


def _preparation(chain: Chain) -> Preparation:
    return chain.prepare.at(chain.data_facts["shape"][-1])


def train_into(
    chain: Chain,
    folder: Path,
    network: nn.Module,
    config: recipe.Train,
    label: str,
    masks: Masks | None = None,
    teacher: Teacher | None = None,
    prepare: Preparation | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Train ``network`` in place; write its weights and training curve into ``folder``.

    Training continues from a checkpoint in ``folder``. Returns the trained network; see
    :func:`secateur.training.loop.train` for the arguments. ``prepare`` and ``seed`` default to the
    recipe's.
    """
    checkpoint = folder / "checkpoint.safetensors"
    training, validation = chain.parts
    kept, history = train(
        network,
        training,
        validation,
        prepare or chain.prepare,
        config,
        seed=chain.recipe.seed if seed is None else seed,
        checkpoint=checkpoint,
        masks=masks.tensors if masks else None,
        teacher=teacher,
        built_from=chain.recipe.network,
        label=label,
    )
    save_tensors(folder / "weights.safetensors", kept.state_dict())
    write_json(folder / "history.json", [asdict(epoch) for epoch in history])
    remove_checkpoints(checkpoint)
    return kept
