"""A merged candidate is made, stored and rebuilt as one with fewer channels is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.compression.candidate import Candidate, Merging
from secateur.compression.candidate_stages import Stages
from secateur.compression.changes import LayerMerging
from secateur.compression.inputs import Inputs, read_problem
from secateur.compression.settings import Settings
from secateur.pruning.merging.chains import chains_of
from secateur.pruning.merging.linear_segment import LinearSegment
from secateur.pruning.merging.links import Segment
from secateur.pruning.merging.rewrite import to_json
from secateur.pruning.merging.traced import trace_modules
from secateur.store import Store


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    problem = read_problem(Inputs(), torch.device("cpu"))
    images = problem.training.spread(100), problem.validation.spread(50)
    problem = replace(problem, read=lambda: images)
    settings = Settings.model_validate({"tune": {"epochs": 1, "batch_size": 50}})
    stages = Stages(problem, settings, Store(tmp_path / "stages"))
    traced = trace_modules(problem.network, problem.example)
    chain = max(chains_of(traced), key=lambda chain: len(chain.links))
    removals = [s for s in chain.segments(7) if s.kind == "remove"]
    segments = [Segment(chain, 0, removals[0].start, "merge")] if removals[0].start > 1 else []
    segments += [Segment(chain, removals[0].start, removals[0].end, "merge"), removals[-1]]
    monkeypatch.setattr(stages, "_make_merges", lambda merging: to_json(traced, segments))
    return stages


def test_a_merged_candidate_is_trained_and_rebuilt(stages: Stages) -> None:
    candidate = Candidate(merging=Merging(kept=0.7), epochs=1)
    assert candidate.name == "latency 0.70 by merging, float"
    change = stages.change(candidate)
    assert isinstance(change, LayerMerging)
    linear = change.start(stages.problem.network)
    assert any(isinstance(module, LinearSegment) for module in linear.modules())
    network = stages.network(candidate)
    assert not any(isinstance(module, LinearSegment) for module in network.modules())
    stored = stages.tuned(candidate).tensors("weights.safetensors")
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in stored.items()
    }

    def convolutions(module: nn.Module) -> int:
        return sum(isinstance(part, nn.Conv2d) for part in module.modules())

    assert convolutions(network) < convolutions(stages.problem.network)
    with torch.no_grad():
        images = stages.problem.prepare(stages.problem.validation.pixels[:20])
        right = (network(images).argmax(1) == stages.problem.validation.labels[:20]).sum()
    assert right >= 5  # chance is 2
