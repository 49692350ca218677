"""The episode's state machine, case by case; and its independence of how points were cut into batches."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.record.fold import EVENT, EXPIRED, RESET, RETURNED, SILENCE, TERMINAL, Points
from ebbtide.featurestore.record.layout import EPISODE_FIELDS, Layout, Rows
from ebbtide.featurestore.spec import dump_spec, parse_spec
from ebbtide.stream.decision.budget import Budget, Spent
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.decision.holdout import Holdout
from ebbtide.stream.decision.policy import Asked, Transition
from ebbtide.stream.decision.rules import Band, Rules
from tests.support.seams.scoring import LAYOUT, SPEC

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


def test_a_flapping_score_makes_one_episode() -> None:
    """A hundred times above `enter` and below `exit`, each time for less than the dwell: one opening, and no end; then
    one end, a dwell after it went below for good."""
    policy = EpisodePolicy.of(enter=0.8, exit=0.5, dwell_ms=1_000)
    cases, p = [], []
    for n in range(100):
        for at, score in ((0, 0.9), (400, 0.1), (1_300, 0.2)):
            cases.append((0, 1 + n * 2_000 + at, E))
            p.append(score)
    walk = points_of(cases)
    rows = LAYOUT.empty(1)
    transitions = decide(walk, floats(*p), LAYOUT.empty(1), rows, policy)
    assert [(t.state, t.point) for t in transitions] == [("opened", 0)]
    last = 1 + 99 * 2_000 + 400
    ends = points_of([(0, last + 999, S), (0, last + 1_000, S)])
    after = LAYOUT.empty(1)
    transitions = decide(ends, floats(0.1, 0.1), rows, after, policy)
    assert [(t.state, t.cause, t.point) for t in transitions] == [("resolved", "score", 1)]


def test_a_higher_band_escalates_once() -> None:
    """Up, down between exit and enter, up again: said once for each band; one that opens high escalates no more."""
    policy = EpisodePolicy.of(
        enter=0.6, exit=0.3, bands=(Band(name="critical", enter=0.8), Band(name="worst", enter=0.95))
    )
    walk = points_of([(0, t, S) for t in range(10, 90, 10)] + [(1, 90, S), (1, 95, S)])
    scores = floats(0.7, 0.85, 0.4, 0.85, 0.97, 0.82, 0.99, 0.1, 0.96, 0.99)
    transitions = decide(walk, scores, LAYOUT.empty(2), LAYOUT.empty(2), policy)
    assert [(t.point, t.state, policy.targets[0].band(t.band).name) for t in transitions] == [
        (0, "opened", "high"), (1, "escalated", "critical"), (4, "escalated", "worst"), (7, "resolved", "worst"),
        (8, "opened", "worst"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("event_at", "p", "expected"),
    [
        # silent at 100, opened; an event of 50 comes late, and with it there is no risk: no dwell, no cool-down
        (50, 0.1, [(100, "opened", "score"), (100, "corrected", "late_event"), (120, "opened", "score")]),
        # it comes late and changes little
        (50, 0.6, [(100, "opened", "score")]),
        # an event that is no older than the alert is news: the dwell begins
        (100, 0.1, [(100, "opened", "score")]),
    ],
)
def test_a_late_event_takes_an_alert_back(
    event_at: int, p: float, expected: list[tuple[int, str, str]]
) -> None:
    walk = points_of([(0, 100, S), (0, 100, E), (0, 120, S)])
    asked = Asked.of_one(walk, floats(0.9, p, 0.9), ["ann"], np.array([100, event_at, 120]))
    transitions = POLICY.decide(asked, LAYOUT.empty(1), LAYOUT.empty(1)).transitions
    assert [(int(walk.as_of[t.point]), t.state, t.cause) for t in transitions] == expected


def test_who_is_held_out_has_episodes_that_nobody_hears_of() -> None:
    """By their id alone; an episode stays what it was when it began, whatever the share is later."""
    names = [f"customer {i}" for i in range(4_000)]
    policy = EpisodePolicy(POLICY.targets, holdout=Holdout(0.1, "a"))
    points = points_of([(i, 100, S) for i in range(len(names))])
    rows = LAYOUT.empty(len(names))
    p = np.full(len(names), 0.9, np.float32)
    opened = policy.decide(Asked.of_one(points, p, names), LAYOUT.empty(len(names)), rows).transitions
    silent = [t.point for t in opened if t.held == "holdout"]
    assert 0.08 < len(silent) / len(names) < 0.12
    assert [names[i] for i in silent] == [name for name in names if policy.holds_out(name)]
    assert rows["episode_state"][silent].tolist() == [[2]] * len(silent)
    later = points_of([(i, 200, T) for i in range(len(names))])
    everybody = EpisodePolicy(POLICY.targets)
    ended = everybody.decide(Asked.of_one(later, p, names), rows, LAYOUT.empty(len(names))).transitions
    assert [t.point for t in ended if t.held == "holdout"] == silent
    other = Holdout(0.1, "b")
    assert sum(other.holds(name) and policy.holds_out(name) for name in names) < 0.03 * len(names)


def test_a_budget_caps_openings_and_takes_the_riskiest_last() -> None:
    """Six a minute over two partitions: three each. Half are free, then p has to be higher; the episode of who is held
    back opens at a later point, and the next minute is another."""
    policy = EpisodePolicy(EpisodePolicy.of(enter=0.5, exit=0.2).targets, alerts_per_minute=6)
    cases = [(i, 60_000 + i, S) for i in range(8)] + [(2, 120_000, S)]
    p = floats(0.5, 0.5, 0.6, 0.9, 0.9, 1.0, 1.0, 1.0, 0.5)
    asked = replace(Asked.of_one(points_of(cases), p, [str(i) for i in range(8)]), partitions=2)
    rows = LAYOUT.empty(8)
    decided = policy.decide(asked, LAYOUT.empty(8), rows)
    told = [(t.point, t.held) for t in decided.transitions]
    # used 0, 1: the rule's own 0.5; used 2 of 3: 0.5 + 0.5 / 3; used up: nothing
    assert told == [
        (0, ""), (1, ""), (2, "budget"), (3, ""), (4, "budget"), (5, "budget"), (6, "budget"), (7, "budget"), (8, ""),
    ]  # fmt: skip
    assert decided.spent == [((1, 3), (2, 1))]
    assert rows["episode_state"][:, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert all(t.sequence == 0 for t in decided.transitions if t.held)


def test_a_budget_that_was_lowered_goes_on() -> None:
    """Its stretches are longer then: what was opened before counts in those of then, and not for ever."""
    spent: Spent = ()
    for minute in range(1_000, 1_004):
        spent = Budget(6.0, 6).take(spent, minute * 60_000)
    lowered = Budget(3.0, 6)
    assert lowered.minutes == 2
    assert lowered.needed(0.5, spent, 1_003 * 60_000) > 1
    for minute in range(1_004, 1_012, 2):
        assert lowered.needed(0.5, spent, minute * 60_000) == 0.5
        spent = lowered.take(spent, minute * 60_000)
        assert lowered.needed(0.5, spent, (minute + 1) * 60_000) > 1


def test_a_budget_of_less_than_one_is_of_a_longer_time() -> None:
    """Ten a minute over 64 partitions: one in seven minutes each."""
    budget = Budget(10.0, 64)
    assert budget.minutes == 7
    assert budget.share == pytest.approx(70 / 64)
    spent = budget.take((), 7 * 60_000)
    assert spent == ((7, 1),)
    assert budget.needed(0.5, spent, 13 * 60_000) > 1
    assert budget.needed(0.5, spent, 14 * 60_000) == 0.5


def test_an_event_of_a_far_time_uses_up_another_minute() -> None:
    """Each minute counts for itself; what is older than the four that are kept counts in the oldest."""
    budget = Budget(1.0)
    spent = budget.take((), 10**12)
    assert budget.needed(0.5, spent, 60_000) == 0.5
    for minute in (1, 2, 3):
        spent = budget.take(spent, minute * 60_000)
    assert [stretch for stretch, _ in spent] == [1, 2, 3, 10**12 // 60_000]
    assert budget.needed(0.5, spent, 0) > 1
    assert budget.needed(0.5, spent, 4 * 60_000) == 0.5
    assert [stretch for stretch, _ in budget.take(spent, 4 * 60_000)] == [2, 3, 4, 10**12 // 60_000]


def test_targets_have_episodes_of_their_own() -> None:
    """Two targets of one customer: own rules, own sequence, own score; a tombstone forgets both."""
    spec = parse_spec(dump_spec(SPEC) | {"targets": [{"name": "sale", "kinds": ["purchase"]}]})
    names = Layout(spec).dtype
    one = Rules(enter=0.8, exit=0.5)
    assert names["episode_state"].shape == (1,)
    two = np.dtype([(n, names[n].base, (2,) if n in EPISODE_FIELDS and n != "scored_at" else names[n].shape)
                    for n in names.names or ()])  # fmt: skip
    policy = EpisodePolicy((one, Rules(enter=0.3, exit=0.1)))
    walk = points_of([(0, 10, S), (0, 20, S), (0, 30, R)])
    p = np.array([[0.5, 0.5], [0.9, 0.0], [0, 0]], np.float32)
    before, after = np.zeros(1, two), np.zeros(1, two)
    part = Points(walk.rows[:2], walk.customer[:2], walk.as_of[:2], walk.cause[:2], walk.event[:2])
    told = policy.decide(Asked.of_one(part, p[:2], ["ann"]), before, after).transitions
    assert [(t.target, t.state, t.sequence) for t in told] == [
        (1, "opened", 10), (0, "opened", 20), (1, "resolved", 20)
    ]  # fmt: skip
    assert after["score"][0].tolist() == pytest.approx([0.9, 0.0])
    policy.decide(Asked.of_one(walk, p, ["ann"]), before, after)
    assert after.tobytes() == bytes(after.nbytes)
