"""The demo judges by lives written down by hand: every figure can be counted on the fingers.

day        10                          45            60
───────────┼──── shown ────────────────┼──── truth ───┤     churn: nothing for 14 days
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.ops.config.settings import DEFAULT_SPEC
from ebbtide.ops.demo.scene import Plan, Scene, build_scene, columns
from ebbtide.ops.demo.shop.events import (
    ACCOUNT_CLOSED,
    EVENT,
    LIFE,
    NEWSLETTER,
    PAGE_VIEW,
    Simulated,
    records,
)
from ebbtide.ops.demo.verdict import Asked, Episode, asked, by_recency, judge

SPEC = load_spec(DEFAULT_SPEC)
LAYOUT = Layout(SPEC)
START_MS = 1_735_689_600_000


def at(day: float) -> int:
    return START_MS + round(day * DAY_MS)


def scene_of(lives: dict[int, Sequence[float]], closed: dict[int, float] | None = None) -> Scene:
    """Customers who look at a page on these days."""
    rows = [(at(day), customer, PAGE_VIEW, np.nan) for customer, days in lives.items() for day in days]
    rows += [(at(day), customer, ACCOUNT_CLOSED, np.nan) for customer, day in (closed or {}).items()]
    events = np.sort(np.array(rows, EVENT), order="time_ms")
    names = tuple(f"c{n}" for n in range(1 + max(lives)))
    live = Simulated("hand", at(0), at(60), events, names, np.zeros(0, LIFE))
    first, end = np.searchsorted(events["time_ms"], [at(10), at(45)]).tolist()
    return Scene(live, at(10), at(45), first, end)


def points_of(*points: tuple[int, float, float, bool]) -> Asked:
    """(customer, as of, last activity, churned), in days."""
    customer, as_of, last, churned = zip(*points, strict=True)
    return Asked(
        np.array(customer, np.int64), np.array([at(d) for d in as_of]), np.array([at(d) for d in last]),
        np.array(churned),
    )  # fmt: skip


def test_an_alert_leads_by_what_was_left_of_the_horizon() -> None:
    scene = scene_of({0: (11, 12), 1: (12, 20, 30, 40), 2: (12, 29.5)})
    episodes = [Episode(0, at(15)), Episode(1, at(15)), Episode(2, at(16))]
    points = points_of((0, 15, 12, True), (1, 15, 12, False), (2, 16, 12, False), (2, 12, 12, True))
    found = judge(scene, points, episodes, LAYOUT, scene.closes_ms)
    assert found.ours.alerts == 3
    assert found.ours.precision == pytest.approx(1 / 3)
    assert found.ours.lead_days == pytest.approx(11)
    assert found.base_rate == pytest.approx(1 / 2)


@dataclass(frozen=True)
class Case:
    """What was known of customer 0, who was last seen on day 20."""

    name: str
    episode: Episode | None
    known: bool


@pytest.mark.parametrize(
    "case",
    [
        Case("no episode", None, False),
        Case("opened in the silence", Episode(0, at(25)), True),
        Case("open since before it", Episode(0, at(15)), True),
        Case("resolved before it", Episode(0, at(15), at(18)), False),
        Case("resolved by its last activity", Episode(0, at(15), at(20)), False),
        Case("opened when it was churn already", Episode(0, at(34)), False),
    ],
    ids=lambda case: case.name,
)
def test_a_silence_is_recalled_when_an_episode_knew_it(case: Case) -> None:
    scene = scene_of({0: (11, 20), 1: (11, 12, 13)})
    points = points_of((0, 21, 20, True), (1, 14, 13, True))
    episodes = [case.episode] if case.episode else []
    found = judge(scene, points, episodes, LAYOUT, scene.closes_ms)
    assert found.silences == 2
    assert found.recall == (0.5 if case.known else 0.0)


def test_only_silences_shown_whole_count() -> None:
    """Not the one that began too late or before, nor a stated leave, nor somebody nobody was asked about."""
    scene = scene_of({0: (12, 40), 1: (5,), 2: (12,), 3: (12,), 4: (12,)}, closed={2: 12.5})
    points = points_of(
        (0, 13, 12, True), (0, 41, 40, True), (1, 11, 5, True), (2, 13, 12, True), (4, 13, 12, True)
    )
    found = judge(scene, points, [], LAYOUT, scene.closes_ms)
    assert found.silences == 2  # customer 0 from day 12 to 40, customer 4
    nothing = judge(scene_of({0: tuple(range(50))}), points, [], LAYOUT, scene.closes_ms)
    assert nothing.silences == 0
    assert np.isnan(nothing.recall) and np.isnan(nothing.ours.precision)


GAPS = np.array([1, 4, 14], np.int64) * DAY_MS


def silences(*reached: tuple[float, bool]) -> Asked:
    """One silence a customer, asked about at every gap up to `reached` days."""
    points = [
        (customer, float(gap), 0.0, churned)
        for customer, (longest, churned) in enumerate(reached)
        for gap in (0, 1, 4, 14)
        if gap <= longest
    ]
    return points_of(*points)


def test_recency_alerts_once_a_silence() -> None:
    """Four silences reach a day, two of them four days, one of them fourteen."""
    points = silences((1, False), (1, True), (4, False), (14, True))
    rule, between = by_recency(points, GAPS, 4)
    assert (rule.alerts, rule.precision, between) == (4, 0.5, (1.0, 1.0))
    rule, between = by_recency(points, GAPS, 2)
    assert (rule.alerts, rule.precision, between) == (2, 0.5, (4.0, 4.0))
    rule, _ = by_recency(points, GAPS, 1)
    assert (rule.alerts, rule.precision, rule.lead_days) == (1, 1.0, 0.0)


def test_recency_between_two_gaps_takes_a_share_of_each() -> None:
    """Three alerts lie half-way between the four at one day and the two at four days."""
    rule, between = by_recency(silences((1, False), (1, True), (4, False), (14, True)), GAPS, 3)
    assert rule.alerts == pytest.approx(3)
    assert rule.precision == pytest.approx((0.5 * 2 + 0.5 * 1) / 3)
    assert between == (1.0, 4.0)


def test_recency_cannot_alert_more_often_than_there_are_silences() -> None:
    rule, _ = by_recency(silences((1, False), (4, True)), GAPS, 9)
    assert (rule.alerts, rule.precision) == (2, 0.5)


def test_recency_draws_from_the_longest_silences() -> None:
    rule, between = by_recency(silences((14, False), (14, True), (14, True), (14, True)), GAPS, 2)
    assert (rule.alerts, rule.precision, between) == (2, 0.75, (14.0, 14.0))
    rule, _ = by_recency(silences((1, True)), GAPS, 0)
    assert rule.alerts == 0


def test_the_points_are_those_that_shown_events_brought_about() -> None:
    """A silence counts when the event that ended it was shown; nothing after the last event sent does."""
    scene = scene_of({0: (0, 0.5, 1, 2, 9, 12.2, 44, 50)})
    log = columns(scene.live, SPEC)

    def days(points: Asked) -> list[float]:
        return [float(day) for day in ((points.as_of - START_MS) / DAY_MS).round(2)]

    # Known for a week from day 7 on. Day 12 shows those since day 9, day 44 those since day 12, up to 14 days. The
    # visit of day 12.2 is no point: the last was a third of a day before, less than `score_every`.
    assert days(asked(scene, log, LAYOUT, 1)) == [10, 10.3, 10.69, 11.2, 11.86]
    everything = days(asked(scene, log, LAYOUT, scene.end - scene.first))
    gone = [13.2, 13.5, 13.89, 14.4, 15.06, 15.91, 17.03, 18.47, 20.36, 22.8, 25.99, 26.2]
    assert everything == [10, 10.3, 10.69, 11.2, 11.86, *gone, 44]


def test_simulated_columns_are_what_parsing_the_records_gives() -> None:
    """So the store is filled with the state that streaming the same events would have made."""
    scene = build_scene(Plan(live_customers=100, filled_days=10, seconds=5), SPEC.horizon_ms)
    names = scene.live.customers

    @dataclass
    class Sent:
        offset: int
        timestamp: int
        key: bytes
        value: bytes

    sent = [Sent(n, time, key, value) for n, (key, value, time) in enumerate(records(scene.live))]
    parsed = Parser(SPEC).parse(sent)
    ours, theirs = columns(scene.live, SPEC), parsed.events
    assert not parsed.rejected and not parsed.ignored
    assert [theirs.customers[i] for i in theirs.customer] == [names[i] for i in ours.customer]
    for name in ("kind", "time", "event_id", "position"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_array_equal(ours.value, theirs.value)
    assert NEWSLETTER in scene.live.events["type"]
