"""The search over candidates whose accuracy and cost are made up."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from secateur.compression import search as searching
from secateur.compression.candidate import Candidate, Measured, Removal
from secateur.compression.estimate import Estimate, duration
from secateur.compression.patience import Patience
from secateur.compression.search import Search
from secateur.compression.settings import Settings
from secateur.errors import SecateurError
from secateur.tracking import _TOOLS, tracking
from secateur.training.trainer import Epoch

N = 4000
REFERENCE = np.arange(N) < 3600

Lost = Callable[[Candidate], float]


class Stages:
    """Stands in for the real ones: accuracy is a function of the candidate, cost of its width."""

    def __init__(self, lost: Lost, step: float | None, drift: Lost) -> None:
        self.lost, self.settings = lost, Settings()
        self.step, self.drift, self.timings = step, drift, list[int]()
        self.numbers = itertools.count()
        self.problem = SimpleNamespace(
            test_images=N, network=torch.nn.Identity(), example=torch.zeros(1, 1, 8, 8)
        )
        self.reference_right, self.trained = REFERENCE, list[Candidate]()

    def measured(self, candidate: Candidate, hopeless: Any = None) -> Measured:
        if candidate.epochs:
            self.trained.append(candidate)
        right = REFERENCE.copy()
        right[: round(N * self.lost(candidate) / 100)] = False
        width, bits = candidate.kept, 32 if candidate.quantize is None else 8
        priced = 2 if candidate.quantize is not None and candidate.quantize.price else 1
        folder = Path(f"there/{next(self.numbers)}")
        times = np.full(5, self.drift(candidate) * self.true_latency(candidate))
        return Measured(
            candidate, folder, right, REFERENCE, round(4000 * width * bits),
            round(1000 * width * bits) // priced, times, np.ones(5), round(1e6 * width), 1000,
            1.0,
        )  # fmt: skip

    def plan(self, removal: Removal) -> float:
        return removal.kept if self.step is None else math.floor(removal.kept / self.step)

    def timed(self, finished: Sequence[Measured]) -> list[Measured]:
        """All in turns, while the machine does nothing else."""
        self.timings.append(len(finished))
        return [
            replace(one, latencies_ms=np.full(5, self.true_latency(one.candidate)))
            for one in finished
        ]

    def true_latency(self, candidate: Candidate) -> float:
        return candidate.kept * (32 if candidate.quantize is None else 8) / 32

    def tuned(self, candidate: Candidate) -> SimpleNamespace:
        right = round(2000 * (0.9 - self.lost(candidate) / 100))
        epoch = {
            "epoch": 1, "train_loss": 1.0, "validation_right": right, "validation_images": 2000,
            "seconds": 1.0,
        }  # fmt: skip
        return SimpleNamespace(json=lambda name: [epoch])


def estimate(within: float | None = None) -> Estimate:
    return Estimate(0.001, 0.0001, 1000, 100, 100, within)


def searched(
    monkeypatch: pytest.MonkeyPatch,
    lost: Lost,
    within: float | None = None,
    step: float | None = None,
    drift: Lost = lambda candidate: 1.0,
    settings: dict[str, Any] | None = None,
    **goal: Any,
) -> tuple[Measured, Search, Stages]:
    prunable = SimpleNamespace(groups=("one",))
    monkeypatch.setattr(searching, "find_prunable", lambda network, example: prunable)
    chosen = {"goal": {"max_drop": 1.0} | goal, "tries": 8} | (settings or {})
    stages = Stages(lost, step, drift)
    search = Search(stages, Settings.model_validate(chosen), estimate(within), 4, time.monotonic())  # type: ignore[arg-type]
    return search.run(), search, stages


def worse_below(width: float) -> Lost:
    """Nothing is lost down to a width; 5 points below it."""
    return lambda candidate: 5.0 if candidate.kept < width else 0.1


@pytest.mark.parametrize("width", [0.2, 0.45, 0.8])
@pytest.mark.parametrize("target", ["latency", "size", "macs"])
def test_bisection_ends_just_above_the_width_that_is_needed(
    monkeypatch: pytest.MonkeyPatch, width: float, target: str
) -> None:
    chosen, search, _ = searched(monkeypatch, worse_below(width), target=target)
    assert width <= chosen.candidate.kept <= width * searching.CLOSE
    assert len(search.tried) <= 11


@pytest.mark.parametrize("width", [0.3, 0.6, 0.9])
def test_merges_are_tried_until_one_loses_too_much(
    monkeypatch: pytest.MonkeyPatch, width: float
) -> None:
    def lost(candidate: Candidate) -> float:
        return 5.0 if candidate.kept < (width if candidate.merging else 0.7) else 0.1

    chosen, search, stages = searched(monkeypatch, lost, settings={"merge": True})
    tried = [one.candidate.kept for one in search.tried if one.candidate.merging]
    assert tried[:3] == {0.3: [0.8, 0.65, 0.5], 0.6: [0.8, 0.65, 0.5], 0.9: [0.8]}[width]
    assert bool(chosen.candidate.merging) == (width < 0.9)
    assert all(each.epochs == 4 for each in stages.trained if each.merging)


@pytest.mark.parametrize(
    "goal", [{"target": "size"}, {"latency_ms": 4.0}, {"merge": False}, {"within": 9.9}]
)
def test_merges_are_tried_only_for_latency_and_where_wanted(
    monkeypatch: pytest.MonkeyPatch, goal: dict[str, Any]
) -> None:
    goal = dict(goal)
    wanted = {"merge": goal.pop("merge", True)}
    _, search, _ = searched(monkeypatch, worse_below(0.5), settings=wanted, **goal)
    assert not any(one.candidate.merging for one in search.tried)


def test_the_first_width_is_the_one_at_which_methods_were_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, search, _ = searched(monkeypatch, worse_below(0.2))
    pruned = [one.candidate.kept for one in search.tried if one.candidate.removal]
    assert pruned[0] == searching.TRIAL_KEPT


def test_ships_the_quantized_network_where_pruning_never_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen, *_ = searched(monkeypatch, worse_below(1.0))
    assert chosen.candidate.kept == 1.0
    assert chosen.candidate.quantize is not None


def test_ships_the_float_network_where_rounding_loses_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen, search, _ = searched(
        monkeypatch, lambda candidate: 0.0 if candidate == Candidate() else 4.0
    )
    assert chosen.candidate == Candidate()
    methods = [one.candidate.quantize.method for one in search.tried if one.candidate.quantize]
    assert "auto" in methods  # a more careful quantization was tried


@pytest.mark.parametrize("per_channel", [True, False])
def test_careful_quantization_equalizes_only_where_channels_share_a_scale(
    monkeypatch: pytest.MonkeyPatch, per_channel: bool
) -> None:
    quantize = {"quantize": {"per_channel": per_channel}}
    lost = lambda candidate: 0.0 if candidate == Candidate() else 4.0  # noqa: E731
    _, search, _ = searched(monkeypatch, lost, settings=quantize)
    tried = [one.candidate.quantize for one in search.tried if one.candidate.quantize]
    careful = [config for config in tried if config.method == "auto"]
    assert careful
    assert {config.equalize for config in careful} == {not per_channel}


def lost_by_rounding(candidate: Candidate) -> float:
    """Rounding loses 4 points unless it is trained; channels cost nothing down to a half."""
    untrained = candidate.quantize is not None and not candidate.quantize.epochs
    return 4.0 * untrained + worse_below(0.5)(candidate)


def test_rounding_is_trained_where_it_loses_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, search, _ = searched(monkeypatch, lost_by_rounding)
    assert chosen.candidate.quantize is not None
    assert chosen.candidate.quantize.epochs == 2  # half of those of fine-tuning
    assert chosen.candidate.name.endswith(", trained")
    assert chosen.candidate.quantize.learning_rate == pytest.approx(0.25 * 2e-4)
    assert chosen.candidate.kept < 0.6
    pruned = [one.candidate.quantize for one in search.tried if one.candidate.removal]
    assert all(config is not None and config.epochs for config in pruned)


def test_rounding_is_not_trained_where_it_need_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    _, search, _ = searched(monkeypatch, worse_below(0.5))
    assert not any(one.candidate.quantize and one.candidate.quantize.epochs for one in search.tried)
    assert search.estimate.rounding_epochs == 0


def test_rounding_is_trained_only_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = estimate().fixed + estimate().verdict + 3.0  # two epochs with rounding take 6 s
    _, search, _ = searched(monkeypatch, lost_by_rounding, within=limit)
    assert "rounding is not trained: no time" in capsys.readouterr().err
    assert search.estimate.rounding_epochs == 0


def test_widths_that_are_only_timed_have_no_trained_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, search, _ = searched(monkeypatch, lost_by_rounding, latency_ms=0.1)
    pruned = [one.candidate for one in search.tried if one.candidate.removal]
    for candidate in pruned:
        assert candidate.quantize is not None
        assert bool(candidate.quantize.epochs) == bool(candidate.epochs)
    assert any(candidate.epochs for candidate in pruned)


@pytest.mark.parametrize(("lost", "ships"), [(0.75, "int8"), (0.95, "float")])
def test_a_quantized_network_as_likely_as_not_to_pass_is_preferred_to_the_given_one(
    monkeypatch: pytest.MonkeyPatch, lost: float, ships: str
) -> None:
    chosen, search, _ = searched(
        monkeypatch, lambda candidate: 0.0 if candidate == Candidate() else lost
    )
    assert not any(search.acceptable(one) for one in search.tried if one.candidate.quantize)
    assert chosen.candidate.name == ships


def test_the_best_candidate_is_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, search, _ = searched(monkeypatch, worse_below(0.3))
    assert chosen.candidate.quantize is not None
    assert chosen.candidate.quantize.price == "auto"
    assert search.tried[-1] is chosen


def test_the_way_that_keeps_most_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(candidate: Candidate) -> float:
        if candidate.removal is None:
            return 0.0
        return 0.1 if candidate.removal.method.scope == "global" else 3.0

    chosen, *_ = searched(monkeypatch, lost)
    assert chosen.candidate.removal is not None
    assert chosen.candidate.removal.method.scope == "global"


def test_the_choice_compares_times_of_the_same_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    def drift(candidate: Candidate) -> float:
        """The machine was slow while narrow candidates were made."""
        return 10.0 if candidate.kept < 0.5 else 1.0

    chosen, search, stages = searched(monkeypatch, worse_below(0.3), drift=drift)
    assert chosen.candidate.kept < 0.5
    acceptable = sum(search.acceptable(one) for one in search.tried)
    assert stages.timings == [acceptable - 1, len(search.tried)]  # before pricing, and after
    times = [one.latency_ms for one in search.tried]
    assert times == [stages.true_latency(one.candidate) for one in search.tried]


def test_times_are_compared_where_the_limit_ended_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, search, stages = searched(monkeypatch, worse_below(0.2), within=16.1)
    assert stages.timings[-1] == len(search.tried) == 2


def test_widths_of_the_same_network_are_trained_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen, search, stages = searched(monkeypatch, worse_below(0.45), step=0.25)
    trained = {math.floor(one.kept / 0.25) for one in stages.trained if one.quantize}
    pruned = [one for one in search.tried if one.candidate.epochs and not is_priced(one)]
    assert len(pruned) == len(trained)
    assert "the same network as macs" in capsys.readouterr().err
    assert chosen.candidate.kept >= 0.45


def is_priced(one: Measured) -> bool:
    return one.candidate.quantize is not None and bool(one.candidate.quantize.price)


def test_goal_of_latency_trains_the_widest_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # int8 takes width / 4 milliseconds.
    chosen, _, stages = searched(monkeypatch, lambda candidate: 0.1, latency_ms=0.1)
    assert 0.1 / searching.CLOSE <= chosen.latency_ms <= 0.1
    assert len(stages.trained) == 1 or stages.trained[1:] == [chosen.candidate]


def test_goal_of_latency_trains_what_is_within_it_when_timed_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drift(candidate: Candidate) -> float:
        """The machine was fast while narrow candidates were made."""
        return 0.5 if candidate.kept < 0.9 else 1.0

    def lost(candidate: Candidate) -> float:
        return 5.0 if candidate.removal and not candidate.epochs else 0.1

    chosen, *_ = searched(monkeypatch, lost, drift=drift, latency_ms=0.1)
    assert chosen.candidate.epochs
    assert chosen.latency_ms <= 0.1


def test_every_candidate_is_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logged = []
    log = lambda name, value, step: logged.append((name, step))  # noqa: E731
    monkeypatch.setitem(_TOOLS, "mlflow", lambda folder: (log, lambda: None))
    with tracking("mlflow", tmp_path):
        _, search, _ = searched(monkeypatch, worse_below(0.3))
    steps = [step for name, step in logged if name == "candidates/latency_ms"]
    assert steps == [*range(1, len(search.tried) + 1)]


def test_goal_that_cannot_be_met(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SecateurError, match=r"the goal cannot be met: expected .*0.01 ms"):
        searched(monkeypatch, lambda candidate: 0.1, latency_ms=0.01)


def test_no_candidate_is_begun_that_would_exceed_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    _, search, stages = searched(monkeypatch, worse_below(0.2), within=16.1)
    assert not stages.trained
    assert len(search.tried) == 2


def test_a_candidate_that_becomes_too_slow_is_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(searching.time, "monotonic", lambda: clock[0])

    class Slow(Stages):
        def measured(self, candidate: Candidate, hopeless: Any = None) -> Measured:
            if hopeless is not None:
                clock[0] += 5000
                hopeless([SimpleNamespace(validation_right=900, validation_images=1000)])
            return super().measured(candidate, hopeless)

    monkeypatch.setattr(sys.modules[__name__], "Stages", Slow)
    chosen, search, _ = searched(monkeypatch, worse_below(0.2), within=1000)
    assert "time is up; the best candidate so far is used" in capsys.readouterr().err
    assert chosen.candidate.removal is None
    assert len(search.tried) == 2


def test_methods_are_compared_only_where_a_candidate_with_all_its_epochs_still_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = estimate(1.0)
    limit = short.verdict + short.candidate(6, searching.TRIAL_KEPT)  # of 3 for trials and 4
    _, _, stages = searched(monkeypatch, worse_below(0.2), within=limit)
    assert "no time to compare methods" in capsys.readouterr().err
    assert stages.trained[0].epochs == 4
    assert stages.trained[0].removal is not None
    assert stages.trained[0].removal.method == searching.METHODS[0]


def test_fewer_epochs_where_time_is_short() -> None:
    assert estimate(None).epochs_that_fit(4, 1.0, 0.0) == 4
    assert estimate(19.0).epochs_that_fit(4, 1.0, 0.0) == 2
    assert estimate(19.0).epochs_that_fit(4, 1.0, 5.0) == 0


def test_estimate_learns_from_what_candidates_take() -> None:
    before = estimate(100.0)
    slower = before.after(2, 1.0, 3 * before.candidate(2, 1.0))
    assert slower.candidate(2, 1.0) == pytest.approx(3 * before.candidate(2, 1.0))
    assert slower.after(2, 1.0, 0.1).pace == slower.pace


def test_time_for_timing_all_candidates_together_is_kept_free() -> None:
    few = Estimate(0.001, 0.01, 1000, 100, 100, 100.0, turns=55, tried=1)
    many = replace(few, tried=11)
    more = 10 * 2 * 55 * (0.01 + 6 * 0.01)  # candidates, timings, turns, rest and runs
    assert many.verdict - few.verdict == pytest.approx(more)
    assert few.after(1, 1.0, 1.0).tried == 2


def test_hopeless_candidates_are_given_up() -> None:
    def epoch(right: int) -> Epoch:
        return Epoch(1, 1.0, right, 1000, 1.0)

    patience = Patience(reference=0.9, max_drop=1.0)
    patience.learn([epoch(850), epoch(890)])  # 4 points were won after the first of two epochs
    hopeless = patience.rule(2, lambda rest: True)
    assert "16.0 points behind after 1 of 2 epochs" in hopeless([epoch(700)])
    assert hopeless([epoch(850)]) == ""
    assert patience.rule(3, lambda rest: True)([epoch(700)]) == ""  # nothing to compare with


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(42, "42 s"), (130, "2 min 10 s"), (1800, "30 min"), (5400, "1 h 30 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
