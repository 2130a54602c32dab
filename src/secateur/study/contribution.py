"""The contribution of pruning to overfitted networks, in sentences."""

from __future__ import annotations

from secateur.report.numbers import signed
from secateur.statistics import Interval, drop_across_seeds
from secateur.study.cells import OVERFITTED, Cells, Group
from secateur.study.published import NETWORKS, TITLES, published_recipe

PRUNED, RANDOM, DENSE = (f"{OVERFITTED}-{arm}" for arm in ("pruned", "random", "dense"))


def verdict(cells: Cells) -> str:
    """The contribution of pruning to all networks, in one sentence; empty without cells."""
    gains = [_gain(group, PRUNED, DENSE) for group in cells.groups if group.overfitting]
    known = [gain for gain in gains if gain is not None]
    if not known:
        return ""
    won = sum(gain.low > 0 for gain in known)
    cost = sum(gain.high < 0 for gain in known)
    cases = f"{len(known)} case{'s' * (len(known) != 1)} of a network trained to overfit"
    return (
        f"Of {cases}, pruning itself, against the same network retrained as long without it, "
        f"gained test accuracy in {won}, cost some in {cost}, and did nothing that can be shown "
        f"in {len(known) - won - cost}"
    )


def contributions(cells: Cells) -> list[str]:
    """A sentence for each network and fraction of wrong labels, in the published order."""
    titles: dict[str, str] = {
        published_recipe("fashionmnist", n).network.name: TITLES[n] for n in NETWORKS
    }
    groups = [group for group in cells.groups if group.overfitting]
    order = list(titles)
    groups = [group for group in groups if group.setting.network in titles]
    groups.sort(key=lambda g: (order.index(g.setting.network), g.setting.conditions))
    sentences = ((titles[g.setting.network], _conditions(g), contribution(g)) for g in groups)
    return [f"{title}, {how}: {sentence}" for title, how, sentence in sentences if sentence]


def contribution(group: Group) -> str:
    """The contribution of pruning to the test accuracy of one overfitted network.

    The pruned network is compared with the dense one, retrained for the same number of epochs. A
    comparison with the overfitted network would include the effect of retraining. Without a
    significant difference, the sentence claims none.

    Args:
        group: Cells of one network, over its seeds.

    Returns:
        One sentence; empty if an arm is missing.
    """
    pruning = _gain(group, PRUNED, DENSE)
    alone, choice = _gain(group, DENSE, OVERFITTED), _gain(group, PRUNED, RANDOM)
    if pruning is None or alone is None or choice is None:
        return ""
    return (
        f"against the network retrained as long without it, pruning contributes "
        f"{_in_words(pruning)}; retraining alone contributes {_in_words(alone)} "
        f"against the overfitted network, and pruning by least norm instead of at random "
        f"{_in_words(choice)}."
    )


def _gain(group: Group, better: str, than: str) -> Interval | None:
    """Accuracy of ``better`` minus that of ``than`` on the same images, in percentage points."""
    pair = group.right(better, than)
    if not pair:
        return None
    return Interval(*(100 * bound for bound in drop_across_seeds(pair[0], pair[1])))


def _conditions(group: Group) -> str:
    conditions = dict(group.setting.conditions)
    wrong = f"{100 * conditions.get('label_noise', 0):.0f} % wrong labels"
    seeds = f"{len(group.seeds)} seed{'s' * (len(group.seeds) != 1)}"
    return f"{wrong}, {conditions['training_images']:,.0f} training images, {seeds}"


def _in_words(gain: Interval) -> str:
    """``+0.31 points (95 % interval +0.05 to +0.57)``."""
    interval = f"95 % interval {signed(gain.low)} to {signed(gain.high)}"
    if gain.low <= 0 <= gain.high:
        return f"nothing that can be shown ({signed(gain.value)} points, {interval})"
    return f"{signed(gain.value)} points of test accuracy ({interval})"
