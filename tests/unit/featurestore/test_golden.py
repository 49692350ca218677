"""The bytes of installed stores stay readable: golden vectors, which change only together with the layout's id."""

from itertools import pairwise

import pytest

from tests.golden import MADE, SHIPPED, problem_of, read, versions

NAMES = (*MADE, *SHIPPED)


@pytest.mark.parametrize("name", NAMES)
def test_records_and_points_are_the_golden_ones(name: str) -> None:
    problem = problem_of(name, read()["specs"][name])
    assert not problem, problem


def test_the_golden_file_is_of_these_versions() -> None:
    assert read()["versions"] == versions(), "a version was raised: run `python -m tests.golden`"


def test_bytes_that_change_under_one_id_ask_for_a_version() -> None:
    kept = read()["specs"]["small"]
    customer = next(iter(kept["records"]))
    kept["records"][customer] = "00" + kept["records"][customer][2:]
    assert "raise FOLD_VERSION" in problem_of("small", kept)
    kept["id"] = "fold:0123456789abcdef/policy:0123456789abcdef"
    assert "another layout" in problem_of("small", kept)


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_streams_hold_late_events_and_duplicates(name: str) -> None:
    events = read()["specs"][name]["events"]
    assert any(event == before for before, event in pairwise(events))
    assert any(event[2] < before[2] for before, event in pairwise(events))
    assert any(event[3] is not None for event in events)
