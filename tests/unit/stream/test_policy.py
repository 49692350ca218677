"""The episode's state machine, case by case; and its independence of how points were cut into batches."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.record.fold import EVENT, EXPIRED, RESET, RETURNED, SILENCE, TERMINAL, Points
from ebbtide.featurestore.record.layout import EPISODE_FIELDS, Rows
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.decision.policy import Asked, Transition
from tests.support.seams.scoring import LAYOUT

POLICY = EpisodePolicy.of(enter=0.8, exit=0.5, dwell_ms=20, cooldown_ms=100)
E, S, T, R = EVENT, SILENCE, TERMINAL, RESET
BACK, GONE = RETURNED, EXPIRED


def floats(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def points_of(cases: list[tuple[int, int, int]]) -> Points:
    """Points from (customer, as_of, cause)."""
    customer, as_of, cause = (np.array(column) for column in zip(*cases, strict=True))
    return Points(
        LAYOUT.empty(len(cases)), customer.astype(np.int32), as_of.astype(np.int64), cause.astype(np.uint8),
        np.zeros(len(cases), np.int32),
    )  # fmt: skip


def decide(
    points: Points, p: NDArray[np.float32], before: Rows, after: Rows, policy: EpisodePolicy
) -> list[Transition]:
    """By a policy without a budget."""
    names = [f"customer {i}" for i in range(len(after))]
    return policy.decide(Asked.of_one(points, p, names), before, after).transitions


@pytest.mark.parametrize(
    ("name", "walk", "expected"),
    [
        # as_of    10    20    30
        # p        .1    .9    .9        opened once, not twice
        ("opens once", [(10, E, 0.1), (20, S, 0.9), (30, S, 0.9)], [(20, "opened")]),
        # p == enter opens
        ("at the threshold", [(10, E, 0.8)], [(10, "opened")]),
        # between exit and enter an open episode stays open
        ("hysteresis", [(10, S, 0.9), (20, E, 0.6), (60, E, 0.6)], [(10, "opened")]),
        # below exit for 20 ms or more: resolved
        ("dwell", [(10, S, 0.9), (20, E, 0.1), (30, E, 0.1), (40, E, 0.1)], [(10, "opened"), (40, "resolved")]),
        # a score above exit starts the dwell again
        ("dwell again", [(10, S, 0.9), (20, E, 0.1), (30, E, 0.6), (45, E, 0.1)], [(10, "opened")]),
        # cool-down of 100 after 40: at 139 nothing opens, at 140 it does
        (
            "cool-down",
            [(10, S, 0.9), (20, E, 0.1), (40, E, 0.1), (139, S, 0.9), (140, S, 0.9)],
            [(10, "opened"), (40, "resolved"), (140, "opened")],
        ),
        # an explicit leave ends an episode; one that was not open leaves no word
        ("terminal", [(10, S, 0.9), (20, T, 0.0), (30, T, 0.0)], [(10, "opened"), (20, "resolved")]),
        # whoever is back after memory, or never comes, ends an episode with a word, and its cool-down with it
        ("returned", [(10, S, 0.9), (20, BACK, 0.0), (20, E, 0.9)], [(10, "opened"), (20, "resolved"), (20, "opened")]),
        ("expired", [(10, S, 0.9), (20, GONE, 0.0), (30, S, 0.9)], [(10, "opened"), (20, "resolved"), (30, "opened")]),
        ("nothing to end", [(10, S, 0.1), (20, GONE, 0.0), (30, S, 0.1), (40, BACK, 0.0)], []),
        ("back in the cool-down", [(10, S, 0.9), (20, T, 0.0), (30, BACK, 0.0), (40, S, 0.9)],
         [(10, "opened"), (20, "resolved"), (40, "opened")]),
        # a tombstone ends it silently, and its cool-down with it
        ("reset", [(10, S, 0.9), (20, R, 0.0), (30, S, 0.9)], [(10, "opened"), (30, "opened")]),
        ("reset forgets cool-down", [(10, S, 0.9), (20, T, 0.0), (30, R, 0.0), (40, S, 0.9)],
         [(10, "opened"), (20, "resolved"), (40, "opened")]),
    ],
)  # fmt: skip
def test_walk(name: str, walk: list[tuple[int, int, float]], expected: list[tuple[int, str]]) -> None:
    """All at once, and point by point: the same transitions and the same episode."""
    together, one_by_one = LAYOUT.empty(1), LAYOUT.empty(1)
    points = points_of([(0, as_of, cause) for as_of, cause, _ in walk])
    p = np.array([score for *_, score in walk], np.float32)
    transitions = decide(points, p, LAYOUT.empty(1), together, POLICY)
    assert [(walk[t.point][0], t.state) for t in transitions] == expected

    heard = []
    for as_of, cause, score in walk:
        after = LAYOUT.empty(1)
        decided = decide(points_of([(0, as_of, cause)]), floats(score), one_by_one, after, POLICY)
        heard += [(as_of, t.state) for t in decided]
        one_by_one = after
    assert heard == expected
    for field in EPISODE_FIELDS:
        assert together[field] == one_by_one[field], field


def test_sequence_rises_even_after_a_reset() -> None:
    """It is the decision's own time, made strictly increasing: two transitions at one time differ."""
    policy = EpisodePolicy.of(enter=0.8, exit=0.8)
    walk = points_of([(0, 50, S), (0, 50, E), (0, 50, S), (0, 60, R), (0, 70, S)])
    transitions = decide(walk, floats(0.9, 0.1, 0.9, 0.0, 0.9), LAYOUT.empty(1), LAYOUT.empty(1), policy)
    assert [(t.state, t.sequence) for t in transitions] == [
        ("opened", 50), ("resolved", 51), ("opened", 52), ("opened", 70),
    ]  # fmt: skip


def test_sequence_goes_on_for_who_is_back() -> None:
    """What they do is decided as of their return itself: it must not look old beside the word that they are back."""
    walk = points_of([(0, 50, S), (0, 60, BACK), (0, 60, E), (0, 70, GONE), (0, 80, S)])
    transitions = decide(
        walk, floats(0.9, 0.0, 0.9, 0.0, 0.9), LAYOUT.empty(1), rows := LAYOUT.empty(1), POLICY
    )
    assert [(t.state, t.sequence) for t in transitions] == [
        ("opened", 50), ("resolved", 60), ("opened", 61), ("resolved", 70), ("opened", 80),
    ]  # fmt: skip
    decide(points_of([(0, 90, GONE)]), floats(0.0), rows, after := LAYOUT.empty(1), POLICY)
    assert after.tobytes() == bytes(after.nbytes)


def test_only_episode_fields_change_and_the_last_score_stays() -> None:
    """A customer with nothing to decide remembers the last score of its points; everything else is as folded."""
    before, after = LAYOUT.empty(2), LAYOUT.empty(2)
    after["activity_count"] = [5, 6]
    decide(points_of([(0, 10, E), (1, 11, E), (0, 12, S)]), floats(0.1, 0.2, 0.3), before, after, POLICY)
    assert after["score"][:, 0].tolist() == pytest.approx([0.3, 0.2])
    assert after["scored_at"].tolist() == [12, 11]
    assert after["activity_count"].tolist() == [5, 6]


def test_cut_of_the_batch_does_not_matter() -> None:
    """Random points of random customers, walked whole and in random pieces: the same transitions and episodes."""
    rng = np.random.default_rng(seed := 20261123)
    print(f"seed {seed}")
    for _ in range(50):
        n, customers = 60, 4
        who, when = rng.integers(0, customers, n), np.sort(rng.integers(1, 400, n))
        why = rng.choice([E, S, T, R, BACK, GONE], n, p=[0.5, 0.3, 0.05, 0.05, 0.05, 0.05])
        cases = list(zip(who.tolist(), when.tolist(), why.tolist(), strict=True))
        p = rng.random(n).astype(np.float32)
        whole = LAYOUT.empty(customers)
        expected = [
            (t.point, t.state, t.sequence)
            for t in decide(points_of(cases), p, LAYOUT.empty(customers), whole, POLICY)
        ]
        rows, got, start = LAYOUT.empty(customers), [], 0
        while start < n:
            end = start + int(rng.integers(1, 15))
            after = LAYOUT.empty(customers)
            got += [
                (t.point + start, t.state, t.sequence)
                for t in decide(points_of(cases[start:end]), p[start:end], rows, after, POLICY)
            ]
            rows, start = after, end
        assert got == expected
        for field in EPISODE_FIELDS:
            assert np.array_equal(rows[field], whole[field]), field


def test_policy_refuses_an_exit_above_enter() -> None:
    with pytest.raises(ValueError, match="flap"):
        EpisodePolicy.of(enter=0.5, exit=0.6)
