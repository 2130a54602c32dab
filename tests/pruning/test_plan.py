from __future__ import annotations

import pytest

from secateur.errors import NetworkError
from secateur.pruning.plan import Cut, Fold, Plan
from secateur.pruning.tracing.channel_graph import INPUTS, Axis

BODY = {"module": "body.0", "axis": 0, "tensors": ("weight", "bias")}
PLAN = Plan(
    folds=(Fold(module="fc", inputs=(1,), values=(0.5,), into="fc.bias"),),
    cuts=(
        Cut(**BODY, size=4, keep=(3, 0)),
        Cut(module="", axis=1, tensors=("scale",), size=4, keep=(3, 0)),
    ),
)


def test_a_plan_survives_json() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN
    assert PLAN.to_json().startswith('{"version":2,"folds":[{"module":"fc"')


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{", ""),
        ("[]", ""),
        ('{"version": 1}', r"\(version\)"),
        ('{"extra": 1}', r"\(extra\)"),
        ('{"cuts": [{"module": "a"}]}', r"\(cuts\.0\.axis\)"),
        ('{"cuts": [{"module": "a", "axis": 0, "tensors": [], "size": 1, "keep": ["x"]}]}', "keep"),
    ],
)
def test_nothing_else_is_taken_for_a_plan(text: str, where: str) -> None:
    with pytest.raises(NetworkError, match=f"^not a removal plan.*{where}.*found") as caught:
        Plan.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_cut_names_tensors_of_modules_and_of_the_network_itself() -> None:
    assert [cut.paths for cut in PLAN.cuts] == [["body.0.weight", "body.0.bias"], ["scale"]]
    assert PLAN.keeps() == {
        Axis("body.0.weight", 0): (3, 0),
        Axis("body.0.bias", 0): (3, 0),
        Axis("scale", 1): (3, 0),
    }


def test_only_what_changes_is_in_a_plan_and_tensors_cut_alike_share_a_cut() -> None:
    keeps = {
        Axis("a.weight", 0): [0, 2],
        Axis("a.weight", INPUTS): [0],
        Axis("b.weight", 1): [0, 2],
        Axis("b.bias", 0): [0, 1, 2],
        Axis("a.bias", 0): [0, 2],
        Axis("c.weight", 0): [1, 0],
    }
    sizes = {axis: 2 if axis.tensor == "c.weight" else 3 for axis in keeps}
    assert Plan.of(keeps, sizes).cuts == (
        Cut(module="a", axis=0, tensors=("weight", "bias"), size=3, keep=(0, 2)),
        Cut(module="b", axis=1, tensors=("weight",), size=3, keep=(0, 2)),
        Cut(module="c", axis=0, tensors=("weight",), size=2, keep=(1, 0)),  # another order
    )


def test_two_plans_in_a_row_are_one() -> None:
    later = Plan(
        cuts=(
            Cut(**BODY, size=2, keep=(1,)),
            Cut(module="fc", axis=1, tensors=("weight",), size=9, keep=(0,)),
        )
    )
    assert PLAN.then(later).cuts == (
        Cut(**BODY, size=4, keep=(0,)),
        Cut(module="", axis=1, tensors=("scale",), size=4, keep=(3, 0)),
        Cut(module="fc", axis=1, tensors=("weight",), size=9, keep=(0,)),
    )
    assert PLAN.then(later).folds == ()
    assert PLAN.then(Plan()).cuts == Plan().then(PLAN).cuts == PLAN.cuts


def test_a_plan_for_another_network_does_not_follow() -> None:
    message = r"does not fit the network \(body.0.weight\): expected 4 entries on axis 0, found 2"
    with pytest.raises(NetworkError, match=message):
        PLAN.then(PLAN)
