"""Searches for the amount of pruning and the quantization within the allowed loss."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from secateur.compression.candidate import OBJECTIVES, Candidate, Measured, Merging, Method, Removal
from secateur.compression.candidate_stages import Stages
from secateur.compression.estimate import Estimate
from secateur.compression.onnx_network import REASON, is_file
from secateur.compression.patience import Patience, TimeUpError
from secateur.compression.settings import Settings
from secateur.compression.tuning import Hopeless
from secateur.compression.verdict import assurance
from secateur.console import say
from secateur.data.images import evenly_spaced
from secateur.errors import NetworkError, SecateurError
from secateur.pruning.find import find_prunable
from secateur.tracking import log_metrics
from secateur.training.loop import GLANCE
from secateur.training.trainer import Epoch
from secateur.wording import counted

ASSURED = 0.8
"""A candidate is acceptable if the test passes with at least this probability, from validation."""

EVEN = 0.5
"""Least such probability at which a candidate is preferred to the given network in float."""

METHODS = (
    Method(importance="l2", scope="local"),
    Method(importance="l2", scope="global"),
    Method(importance="taylor", scope="global"),
)
"""Methods of choosing channels that a short trial compares."""

MERGED = (0.8, 0.65, 0.5)
"""Fractions of the latency to merge layers to, tried in order until one loses too much."""

ROUNDING_RATE = 0.25
"""Learning rate of training with rounding, relative to that of fine-tuning."""

PRICED_COST = 3
"""Duration of quantization with pricing relative to without, approximately."""

PRICED_SHARES = (0.8, 0.4)
"""Fractions of the allowed loss that pricing may use, tried in order; the first acceptable one is
taken."""

TRIAL_KEPT, TRIAL_EPOCHS = 0.5, 1
ALIKE = 1.1
"""Costs within this factor are equal; the smaller file is preferred then."""

CLOSE = 1.15
"""The bisection ends when the smallest acceptable fraction is known within this factor."""
LATE = 1.5
"""A candidate continues if its expected remaining time is at most this multiple of the time
left."""


class Search:
    """Tries candidates until the smallest acceptable fraction is known, or the time is over.

    Args:
        stages: Makes and measures candidates.
        settings: Goal and limits.
        estimate: Estimated durations.
        epochs: Epochs of fine-tuning for each candidate of the bisection.
        start: Start of the run by ``time.monotonic``.
    """

    def __init__(
        self,
        stages: Stages,
        settings: Settings,
        estimate: Estimate,
        epochs: int,
        start: float,
    ) -> None:
        self.stages, self.settings, self.goal = stages, settings, settings.goal
        self.estimate, self.epochs = estimate, epochs
        self.tried: list[Measured] = []
        self._start = start

    def run(self) -> Measured:
        """Search, and return the chosen candidate.

        Raises:
            SecateurError: No width meets the goal of latency or size.
        """
        self._try(Candidate())
        quantize = self._choose_quantization()
        reason = self._refusal()
        if reason:
            say(f"nothing is pruned: {reason}")
        elif self.settings.tries and self.epochs:
            self._prune(quantize)
            self._merge(quantize)
        self._time_together([one for one in self.tried if self._can_ship(one)])
        self._make_smaller(self.choose())
        self._time_together(self.tried)
        return self.choose()

    # ---- choosing

    def _can_ship(self, measured: Measured) -> bool:
        return self.goal.is_absolute or self.acceptable(measured)

    def _time_together(self, candidates: Sequence[Measured]) -> None:
        """Time candidates in turns: only times of the same turns can be compared."""
        finished = [one for one in candidates if one.folder is not None]
        if len(finished) < 2:
            return
        again = self.stages.timed(finished)
        replaced = {one.folder: one for one in again}
        self.tried = [replaced.get(one.folder, one) for one in self.tried]
        times = [one.latency_ms for one in again]
        say(f"    {len(again)} candidates in turns: {min(times):.3g} to {max(times):.3g} ms")

    def acceptable(self, measured: Measured) -> bool:
        """Whether the test will probably pass."""
        return self._assurance(measured) >= ASSURED

    def _assurance(self, measured: Measured) -> float:
        if measured.folder is None:
            return 0.0
        images = self.stages.problem.test_images or len(measured.right)
        return assurance(measured.reference, measured.right, self.goal.max_drop, images)

    def choose(self) -> Measured:
        """Choose among the candidates tried so far.

        With a goal of latency or size: among candidates that meet it, the most likely to pass the
        test. Otherwise the cheapest acceptable candidate; if none is acceptable, the most likely to
        pass. The given network in float always passes and gains nothing: it is chosen only where
        every other candidate is more likely to fail.
        """
        finished = [one for one in self.tried if one.folder is not None]
        if self.goal.is_absolute:
            within = [one for one in finished if one.meets(self.goal)]
            return max(within or finished, key=self._likely_and_wide)
        changed = [one for one in finished if one.candidate != Candidate()]
        acceptable = [one for one in changed if self.acceptable(one)]
        if not acceptable:
            likely = [one for one in changed if self._assurance(one) >= EVEN]
            return max(likely or finished, key=self._assurance)
        least = min(one.cost(self.goal.target) for one in acceptable)
        alike = [one for one in acceptable if one.cost(self.goal.target) <= ALIKE * least]
        return min(alike, key=lambda one: one.packed_bytes)

    def _likely_and_wide(self, measured: Measured) -> tuple[float, float]:
        return self._assurance(measured), measured.candidate.kept

    # ---- trying

    def _try(self, candidate: Candidate, hopeless: Hopeless | None = None) -> Measured:
        known = self._same_network(candidate)
        if known is not None:
            say(f"    {candidate.name}: the same network as {known.candidate.name}")
            return known
        measured = self.stages.measured(candidate, hopeless)
        self.tried.append(measured)
        self.estimate = self.estimate.after(candidate.epochs, candidate.kept, measured.seconds)
        say(f"{len(self.tried):2}. {self._line(measured)}")
        log_metrics("candidates", len(self.tried), measured.metrics)
        return measured

    def _same_network(self, candidate: Candidate) -> Measured | None:
        """What was tried with the same channels removed: widths are multiples, shares are not."""
        if candidate.removal is None:
            return None
        plan = self.stages.plan(candidate.removal)
        for one in self.tried:
            other = one.candidate
            alike = other.quantize == candidate.quantize and bool(other.epochs) == bool(
                candidate.epochs
            )
            if alike and other.removal and self.stages.plan(other.removal) == plan:
                return one
        return None

    def _line(self, measured: Measured) -> str:
        left = self.estimate.left(self._elapsed)
        after = f"; {left} left" if left else ""
        if measured.folder is None:
            return f"{measured.candidate.name}: given up, {measured.given_up}{after}"
        value, low, high = (100 * bound for bound in measured.drop)
        verdict = "acceptable" if self.acceptable(measured) else "loses too much"
        return (
            f"{measured.candidate.name}: loses {value:.2f} [{low:.2f}, {high:.2f}] points on "
            f"validation, {measured.packed_bytes / 1e3:,.1f} kB, {measured.latency_ms:.3g} ms: "
            f"{verdict}{after}"
        )

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._start

    def _choose_quantization(self) -> Candidate:
        """Choose the quantization of all pruned candidates."""
        config = self.settings.quantize
        first = self._try(Candidate(quantize=config))
        if self.acceptable(first) or not self.estimate.fits(self._elapsed, self.estimate.fixed):
            return first.candidate
        # Equalization replaces ReLU6 by ReLU; channels with scales of their own do not need it.
        careful = config.model_copy(update={"method": "auto", "equalize": not config.per_channel})
        second = self._try(Candidate(quantize=careful))
        best = max(first, second, key=self._assurance)
        trained = None if self.acceptable(best) else self._try_trained(best)
        if trained is not None:
            best = max(best, trained, key=self._assurance)
        if not (best.candidate.quantize and best.candidate.quantize.epochs):
            self.estimate = replace(self.estimate, rounding_epochs=0)
        return best.candidate

    def _try_trained(self, best: Measured) -> Measured | None:
        """Try the quantized network trained with rounding, if it can be trained in time."""
        config, epochs = best.candidate.quantize, math.ceil(self.epochs / 2)
        if config is None or config.epochs or not epochs or is_file(self.stages.problem.network):
            return None
        longer = replace(self.estimate, rounding_epochs=epochs)
        if not longer.fits(self._elapsed, longer.fixed):
            say("    rounding is not trained: no time")
            return None
        self.estimate, network = longer, self.stages.problem.network
        peak = ROUNDING_RATE * self.settings.tune.to_train(network, epochs).learning_rate
        trained = config.model_copy(update={"epochs": epochs, "learning_rate": peak})
        try:
            return self._try(Candidate(quantize=trained))
        except NetworkError as error:
            say(f"    rounding is not trained: {error}")
            return None

    def _make_smaller(self, best: Measured) -> None:
        """Apply pricing to the weights of the best candidate; its latency does not change."""
        config = best.candidate.quantize
        if config is None or config.price or not self.acceptable(best):
            return
        for share in PRICED_SHARES:
            if not self.estimate.fits(self._elapsed, PRICED_COST * self.estimate.fixed):
                return
            priced = config.model_copy(
                update={"price": "auto", "tolerance": share * self.goal.max_drop, "scan_images": 0}
            )
            smaller = self._try(best.candidate.model_copy(update={"quantize": priced}))
            if self.acceptable(smaller):
                return

    def _refusal(self) -> str:
        """Why the network cannot be pruned; empty if it can."""
        problem = self.stages.problem
        if is_file(problem.network):
            return REASON
        try:
            prunable = find_prunable(problem.network, problem.example)
        except NetworkError as error:
            return str(error)
        return "" if prunable.groups else "no group of channels can be removed"

    def _prune(self, quantized: Candidate) -> None:
        if self.goal.is_absolute:
            self._prune_to_cost(quantized)
            return
        method = self._choose_method()
        low, high = self.settings.smallest, 1.0
        first = len(self.tried)
        while len(self.tried) - first < self.settings.tries and high / low >= CLOSE:
            # The methods were compared at TRIAL_KEPT; with little time it may be the only try.
            at_trial = len(self.tried) == first and low < TRIAL_KEPT
            kept = TRIAL_KEPT if at_trial else round(math.sqrt(low * high), 3)
            measured = self._try_kept(kept, method, quantized)
            if measured is None:
                break
            if self.acceptable(measured):
                high = kept
            else:
                low = kept

    def _try_kept(self, kept: float, method: Method, quantized: Candidate) -> Measured | None:
        """Try to keep a fraction of the channels; None if the time is over."""
        removal = Removal(kept=kept, objective=OBJECTIVES[self.goal.target], method=method)
        return self._try_tuned(quantized.model_copy(update={"removal": removal}))

    def _merge(self, quantized: Candidate) -> None:
        """Try networks with merged layers, while they are acceptable."""
        if not self.settings.merges:
            return
        if not self.estimate.fits(self._elapsed, self.estimate.merging):
            say("    layers are not merged: no time to measure what that loses")
            return
        for kept in MERGED:
            merging = Merging(kept=kept)
            measured = self._try_tuned(quantized.model_copy(update={"merging": merging}))
            if measured is None or not self.acceptable(measured):
                return

    def _try_tuned(self, candidate: Candidate) -> Measured | None:
        """Try a changed network after all epochs that fit; None if the time is over."""
        epochs = self.estimate.epochs_that_fit(self.epochs, candidate.kept, self._elapsed)
        if not epochs:
            say("time is up: the best candidate so far is used")
            return None
        candidate = candidate.model_copy(update={"epochs": epochs})
        try:
            measured = self._try(candidate, self._hopeless(epochs, candidate.kept))
        except TimeUpError:
            say(f"{candidate.name}: time is up; the best candidate so far is used")
            return None
        except NetworkError as error:  # no width reaches that fraction
            say(f"{candidate.name}: {error}")
            return Measured.without_files(candidate, str(error))
        if measured.folder is not None and measured.candidate == candidate:
            history = self.stages.tuned(candidate).json("history.json")
            self._patience.learn([Epoch(**epoch) for epoch in history])
        return measured

    def _choose_method(self) -> Method:
        """Compare methods of choosing channels on validation, after a short fine-tuning.

        The first method is taken without a comparison where that would leave no time for a
        candidate with all its epochs: epochs gain more than the best method.
        """
        objective, right = OBJECTIVES[self.goal.target], dict[Method, float]()
        epochs = len(METHODS) * TRIAL_EPOCHS + self.epochs
        if not self.estimate.fits(self._elapsed, self.estimate.candidate(epochs, TRIAL_KEPT)):
            say(f"    channels are chosen by {METHODS[0]}: no time to compare methods")
            return METHODS[0]
        for method in METHODS:
            removal = Removal(kept=TRIAL_KEPT, objective=objective, method=method)
            trial = Candidate(removal=removal, epochs=TRIAL_EPOCHS)
            try:
                history = self.stages.tuned(trial).json("history.json")
            except NetworkError as error:
                say(f"{method}: {error}")
                continue
            last = Epoch(**history[-1])
            right[method] = last.validation_right / last.validation_images
        if not right:
            return METHODS[0]
        best = max(right, key=right.__getitem__)
        shown = ", ".join(f"{method} {100 * value:.2f} %" for method, value in right.items())
        say(f"    channels are chosen by {best}; after {counted(TRIAL_EPOCHS, 'epoch')}: {shown}")
        return best

    def _prune_to_cost(self, quantized: Candidate) -> None:
        """Find the largest fraction that meets the goal of latency or size, then fine-tune it."""
        objective, low, high = OBJECTIVES[self.goal.target], self.settings.smallest, 1.0
        as_is = next(one for one in self.tried if one.candidate == quantized)
        if as_is.meets(self.goal):
            return

        config = quantized.quantize and quantized.quantize.model_copy(update={"epochs": 0})

        def untrained(kept: float) -> Measured:
            removal = Removal(kept=kept, objective=objective)
            return self._try(Candidate(removal=removal, quantize=config))

        least = untrained(low)
        if not least.meets(self.goal):
            raise SecateurError(
                "the goal cannot be met",
                expected=str(self.goal),
                found=f"{least.latency_ms:.3g} ms and {least.packed_bytes:,} bytes with "
                f"{100 * low:g} % of the {objective}",
                remedy="allow more time or bytes, or a smaller --size of images",
            )
        while high / low >= CLOSE:
            kept = round(math.sqrt(low * high), 3)
            if untrained(kept).meets(self.goal):
                low = kept
            else:
                high = kept
        self._time_together(self.tried)
        within = [
            one.candidate.kept
            for one in self.tried
            if one.candidate.removal and one.meets(self.goal)
        ]
        self._try_kept(max(within, default=low), self._choose_method(), quantized)

    # ---- giving up

    @cached_property
    def _patience(self) -> Patience:
        right = self.stages.reference_right
        share = float(right[evenly_spaced(len(right), GLANCE)].mean())
        return Patience(share, self.goal.max_drop)

    def _hopeless(self, epochs: int, kept: float) -> Hopeless:
        def in_time(rest: int) -> bool:
            seconds = rest * self.estimate.epoch(kept) + self.estimate.fixed
            return self.estimate.fits(self._elapsed, seconds / LATE)

        return self._patience.rule(epochs, in_time)
