"""What a record's file may say: the types and ranges of its fields, and nothing else."""

import copy
import json

import pytest
from attack_runs import attack_run
from hypothesis import given, settings
from hypothesis import strategies as st

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base.errors import CheckpointError
from tnn_robust.evaluation.results import AttackReport

LAW = settings(derandomize=True, deadline=None, max_examples=300, database=None)
WRONG = ("oops", None, -1, 3000, 0.5, True, [], {}, float("nan"), float("inf"), 10**400)


@pytest.fixture(scope="module")
def stored(digits_run):
    choice = AttackChoice(("fgsm", "pgd"), steps=2)
    found = attack_run(digits_run, choice, seeds=(0, 1), n=20, checks=False)
    return json.loads(json.dumps(found.report.to_json()))


def places(value, path=()):
    """Every place in a JSON value."""
    if path:
        yield path
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in inner:
            yield from places(one, (*path, key))


def changed(value, path, new):
    found = copy.deepcopy(value)
    place = found
    for key in path[:-1]:
        place = place[key]
    if new is places:
        del place[path[-1]]
    else:
        place[path[-1]] = new
    return found


@pytest.mark.parametrize(
    ("path", "new", "text"),
    [
        (("attacks", 0, "train", "correct"), 3000, r"attacks\[0\].train.*correct from 0 to n = 20"),
        (("attacks", 0, "train", "risk"), "oops", r"attacks\[0\].train.risk.*a number, got text"),
        (("worst_case", "test", "n"), 0, r"worst_case.test.*n of at least 1"),
        (("seed",), 0.5, "seed.*a whole number"),
        (("attacks",), [], "at least one attack"),
        (("worst_case", "agp", "risk_ci"), [0.0], r"agp.risk_ci"),
        (("attacks", 1, "test", "risk"), float("nan"), r"attacks\[1\].test.risk.*finite"),
        (("attacks", 1, "over_seeds", "risk_test", "values"), [], r"over_seeds.risk_test"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(stored, path, new, text):
    with pytest.raises(CheckpointError, match=text) as caught:
        AttackReport.from_json(changed(stored, path, new))
    assert "\n" not in str(caught.value)


@LAW
@given(data=st.data())
def test_any_change_is_a_record_or_one_error(stored, data):
    path = data.draw(st.sampled_from(list(places(stored))))
    new = data.draw(st.sampled_from((*WRONG, places)))
    try:
        found = AttackReport.from_json(changed(stored, path, new))
    except CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        again = AttackReport.from_json(json.loads(json.dumps(found.to_json())))
        assert again == found


def test_files_of_the_first_release_are_read(stored):
    old = {name: value for name, value in stored.items() if name != "standing"}
    assert AttackReport.from_json(old).standing == ""
