"""The simulator keeps its word: pure, sorted, true to its own truth, and not too easy.

The seed of every run is printed, so a failure names the world in which it happened.
"""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.demo.shop.behaviour import Scenario, simulate
from ebbtide.ops.demo.shop.events import (
    ACCOUNT_CLOSED,
    ACTIVITY_TYPES,
    NEWSLETTER,
    PLAN_CHANGED,
    PLANS,
    PURCHASE,
    SUPPORT_TICKET,
    TYPES,
    Activity,
    Simulated,
    records,
    write_csv,
    write_jsonl,
)

DAY_MS = 86_400_000
START_MS = 1_735_689_600_000  # 2025-01-01
DEMO_SPEC = Path(__file__).resolve().parents[3] / "ops" / "specs" / "demo.yaml"


def world(seed: int, *, customers: int = 600, days: float = 120.0, prefix: str = "c") -> Simulated:
    print(f"seed {seed}, {customers} customers, {days} days")
    return simulate(Scenario(seed, customers, START_MS, days, prefix=prefix))


@pytest.fixture(scope="module", params=[3, 11, 2026])
def sim(request: pytest.FixtureRequest) -> Simulated:
    return world(request.param)


def auroc(label: NDArray[np.int8], score: NDArray[np.float64]) -> float:
    """Share of (churned, stayed) pairs in the right order, ties half: counted by ranks."""
    values, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    assert len(values) > 1
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    churned = int(label.sum())
    return float((ranks[label == 1].sum() - churned * (churned + 1) / 2) / (churned * (len(label) - churned)))


def test_the_same_seed_gives_the_same_events() -> None:
    one, again, other = world(7), world(7), world(8)
    assert one.events.tobytes() == again.events.tobytes()
    assert one.truth.tobytes() == again.truth.tobytes()
    assert list(records(one)) == list(records(again))
    assert one.events.tobytes() != other.events.tobytes()


def test_events_are_sorted_and_lie_in_the_span(sim: Simulated) -> None:
    time = sim.events["time_ms"]
    assert (np.diff(time) >= 0).all()
    assert sim.start_ms <= time[0]
    assert time[-1] < sim.end_ms
    assert (sim.events["customer"] < len(sim.customers)).all()
    assert (sim.events["type"] < len(TYPES)).all()


def test_every_type_and_every_fate_occurs(sim: Simulated) -> None:
    assert (np.bincount(sim.events["type"], minlength=len(TYPES)) > 0).all()
    truth = sim.truth
    at_once = (truth["left_ms"] > 0) & (truth["fading_ms"] == 0)
    faded = (truth["left_ms"] > 0) & (truth["fading_ms"] > 0)
    came_back = np.diff(truth["customer"]) == 0
    stays = (truth["left_ms"] == 0) & (truth["fading_ms"] == 0)
    for fate in (at_once, faded, came_back, stays, truth["closed"], truth["recovered_ms"] > 0):
        assert fate.sum() >= 3


def test_truth_is_ordered_and_consistent_with_itself(sim: Simulated) -> None:
    """joined < fading < (left or recovered) < the next life's joined; 0 is what did not happen in the span."""
    truth = sim.truth
    faded, left, recovered = (truth[name] > 0 for name in ("fading_ms", "left_ms", "recovered_ms"))
    assert (truth["fading_ms"][faded] >= truth["joined_ms"][faded]).all()
    assert (truth["left_ms"][left] >= np.maximum(truth["joined_ms"], truth["fading_ms"])[left]).all()
    assert not (left & recovered).any()
    assert not (truth["closed"] & ~left).any()
    later = np.flatnonzero(np.diff(truth["customer"]) == 0)
    assert (np.diff(truth["customer"]) >= 0).all()
    assert (truth["left_ms"][later] > 0).all()
    assert (truth["joined_ms"][later + 1] > truth["left_ms"][later]).all()
    assert (truth[["fading_ms", "left_ms"]].tolist() < np.int64(sim.end_ms)).all()


def test_nobody_acts_outside_a_life(sim: Simulated) -> None:
    """No activity before joining, none after leaving, until the customer joins again."""
    acts = sim.events[np.isin(sim.events["type"], [*range(ACTIVITY_TYPES), PLAN_CHANGED])]
    covered = np.zeros(len(acts), bool)
    by_customer = np.argsort(acts["customer"], kind="stable")
    sorted_customers = acts["customer"][by_customer]
    for life in sim.truth:
        lo, hi = np.searchsorted(sorted_customers, [life["customer"], life["customer"] + 1])
        mine = by_customer[lo:hi]
        end = life["left_ms"] or sim.end_ms
        covered[mine] |= (acts["time_ms"][mine] >= life["joined_ms"]) & (acts["time_ms"][mine] <= end)
    assert covered.all()


def test_newsletters_go_to_everyone_known_also_to_those_who_left(sim: Simulated) -> None:
    """A mailing is our act: it must not stop with the customer's interest, else it would betray the leave."""
    mails = sim.events[sim.events["type"] == NEWSLETTER]
    gone_for_good = [
        life for life, following in zip(sim.truth, [*sim.truth[1:], None], strict=True)
        if life["left_ms"] and not life["closed"] and life["left_ms"] < sim.end_ms - 15 * DAY_MS
        and life["joined_ms"] < life["left_ms"] - 30 * DAY_MS
        and (following is None or following["customer"] != life["customer"])
    ]  # fmt: skip
    assert len(gone_for_good) > 20
    seen = set(sim.events["customer"][sim.events["type"] < ACTIVITY_TYPES].tolist())
    for life in gone_for_good:
        if life["customer"] in seen:
            after = (mails["customer"] == life["customer"]) & (mails["time_ms"] > life["left_ms"])
            assert after.sum() >= 2


def test_a_mailing_comes_to_each_at_an_hour_of_their_own() -> None:
    spread = simulate(Scenario(5, 200, START_MS, 60.0, mailing_days=7.0))
    mails = spread.events[spread.events["type"] == NEWSLETTER]
    assert len(np.unique(mails["time_ms"] // DAY_MS % 7)) == 7
    for customer in range(0, 200, 20):
        hours = np.diff(mails["time_ms"][mails["customer"] == customer]) / 3_600_000
        assert np.allclose(hours, 168, atol=0.01)


def test_after_closing_the_account_nothing_comes(sim: Simulated) -> None:
    closings = sim.events[sim.events["type"] == ACCOUNT_CLOSED]
    assert len(np.unique(closings["customer"])) == len(closings)
    for closing in closings:
        mine = sim.events[sim.events["customer"] == closing["customer"]]
        assert mine["time_ms"].max() == closing["time_ms"]


def test_values_belong_to_purchases_and_plans(sim: Simulated) -> None:
    events = sim.events
    has_value = ~np.isnan(events["value"])
    assert (has_value == np.isin(events["type"], [PURCHASE, PLAN_CHANGED])).all()
    assert (events["value"][events["type"] == PURCHASE] > 0).all()
    assert set(events["value"][events["type"] == PLAN_CHANGED].tolist()) <= set(range(len(PLANS)))


def test_a_fade_shows_in_what_customers_do(sim: Simulated) -> None:
    """Late in a fade: hardly a purchase, many more tickets for each event."""
    events, truth = sim.events, sim.truth
    faded = truth[(truth["fading_ms"] > 0) & (truth["left_ms"] > 0)]
    halfway = (faded["fading_ms"] + faded["left_ms"]) // 2
    late = np.zeros(len(events), bool)
    for life, half in zip(faded, halfway, strict=True):
        late |= (
            (events["customer"] == life["customer"])
            & (events["time_ms"] >= half)
            & (events["time_ms"] <= life["left_ms"])
        )
    active = events["type"] < ACTIVITY_TYPES

    def share(kind: int, where: NDArray[np.bool_]) -> float:
        return float((events["type"][where & active] == kind).mean())

    assert share(PURCHASE, late) < 0.4 * share(PURCHASE, ~late)
    assert share(SUPPORT_TICKET, late) > 2.5 * share(SUPPORT_TICKET, ~late)


def test_recency_alone_does_not_solve_it() -> None:
    """People's rhythms differ, so a plain count of days is beaten by the same days beside one's own rhythm and a
    hint of the fade; and the base rate at a snapshot is one that a policy can work with."""
    sim = world(5, customers=4000)
    as_of = sim.start_ms + 100 * DAY_MS
    activity = Activity.of(sim)
    past = activity.time_ms <= as_of
    m = len(sim.customers)
    everyone = np.arange(m, dtype=np.int32)
    last = activity.last_ms(everyone, np.full(m, as_of))
    days = np.unique(activity.customer[past].astype(np.int64) * 1_000_000 + activity.time_ms[past] // DAY_MS)
    active_days = np.bincount(days // 1_000_000, minlength=m)
    first = np.full(m, as_of)
    np.minimum.at(first, activity.customer[past], activity.time_ms[past])
    silence = (as_of - last) / DAY_MS
    eligible = (last > 0) & (silence <= 14) & (active_days >= 4) & (first < as_of - 7 * DAY_MS)
    label = activity.went_silent(everyone, np.full(m, as_of), 14 * DAY_MS)[eligible]

    gap = np.maximum(last - first, 0) / DAY_MS / np.maximum(active_days - 1, 1)
    lately = sim.events[(sim.events["time_ms"] <= as_of) & (sim.events["time_ms"] > as_of - 14 * DAY_MS)]
    seen = np.bincount(lately["customer"][lately["type"] < ACTIVITY_TYPES], minlength=m)
    tickets = np.bincount(lately["customer"][lately["type"] == SUPPORT_TICKET], minlength=m)
    expected = np.maximum(14 / np.maximum(gap, 0.3), 0.5)  # visits that the own rhythm promises for two weeks
    known = (
        np.log1p(silence) + 0.7 * np.log(gap + 0.3) - 0.8 * np.log((seen + 1) / (4.5 * expected + 1))
        + 2.0 * tickets / (seen + 3)
    )  # fmt: skip
    recency, informed = auroc(label, silence[eligible]), auroc(label, known[eligible])
    print(f"base rate {label.mean():.3f}, recency {recency:.3f}, informed {informed:.3f}")
    assert 0.08 < label.mean() < 0.25
    assert 0.70 < recency < 0.84
    assert informed > recency + 0.03


def test_activity_answers_what_happened_next() -> None:
    """
    customer 0   a . . . . b . . . . . . . . c |      silence of 5 and 9 days, horizon 6, log ends on day 15
    customer 1   . . d . . . . . . . . . . . . |
    """
    at = np.array([0, 5, 14, 2]) * DAY_MS + START_MS
    activity = Activity(np.array([0, 0, 0, 1], np.int32), at, START_MS + 15 * DAY_MS)
    who = np.array([0, 0, 0, 1, 1, 2], np.int32)
    when = np.array([0, 1, 5, 0, 3, 3]) * DAY_MS + START_MS
    assert ((activity.next_ms(who, when) - START_MS) // DAY_MS).tolist()[:4] == [5, 5, 14, 2]
    assert activity.next_ms(who, when)[4:].tolist() == [0, 0]
    assert activity.last_ms(who, when).tolist() == [at[0], at[0], at[1], 0, at[3], 0]
    assert activity.went_silent(who, when, 6 * DAY_MS).tolist() == [0, 0, 1, 0, 1, 1]
    assert activity.went_silent(who[:1], at[2:3], 6 * DAY_MS).tolist() == [-1]
    customers, last = activity.silences(6 * DAY_MS)
    assert list(zip(customers.tolist(), last.tolist(), strict=True)) == [(0, at[1]), (1, at[3])]


def test_records_follow_the_public_contract(sim: Simulated) -> None:
    part = slice(100, 3000)
    for number, (key, value, time_ms) in zip(
        range(*part.indices(len(sim))), records(sim, part), strict=False
    ):
        event, row = json.loads(value), sim.events[number]
        assert set(event) <= {"user_id", "event_id", "type", "ts", "value", "properties"}
        assert key.decode() == event["user_id"] == sim.customers[row["customer"]]
        assert event["type"] == TYPES[row["type"]]
        assert event["ts"] == time_ms == row["time_ms"]
        assert event["event_id"] == f"{sim.name}-{number}"
        assert event.get("value") == (row["value"] if row["type"] == PURCHASE else None)
        assert ("properties" in event) == (row["type"] == PLAN_CHANGED)


def test_files_hold_the_same_events(tmp_path: Path) -> None:
    sim = world(4, customers=30, days=20)
    write_jsonl(sim, tmp_path / "events.jsonl.gz")
    write_jsonl(sim, tmp_path / "tail.jsonl", slice(len(sim) - 5, None))
    write_csv(sim, tmp_path / "events.csv")
    with gzip.open(tmp_path / "events.jsonl.gz", "rb") as file:
        lines = file.read().splitlines()
    assert lines == [value for _, value, _ in records(sim)]
    assert (tmp_path / "tail.jsonl").read_bytes().splitlines() == lines[-5:]
    with (tmp_path / "events.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    for line, row in zip(lines, rows, strict=True):
        event = json.loads(line)
        assert (row["user_id"], row["event_id"], row["type"]) == (
            event["user_id"],
            event["event_id"],
            event["type"],
        )
        assert int(row["ts"]) == event["ts"]
        assert row["value"] == str(event.get("value", ""))
        assert row["properties.plan"] == event.get("properties", {}).get("plan", "")


def test_scenarios_have_customers_of_their_own() -> None:
    history, live = world(1, customers=20, prefix="h"), world(2, customers=20, prefix="live-")
    assert not set(history.customers) & set(live.customers)
    assert len(set(live.customers)) == 20


def test_a_scenario_without_customers_or_days_is_refused() -> None:
    for wrong in ({"customers": 0}, {"days": 0.0}, {"start_ms": 0}):
        with pytest.raises(ValueError, match="needs customers"):
            Scenario(**{"seed": 1, "customers": 1, "start_ms": START_MS, "days": 1.0, **wrong})  # type: ignore[arg-type]  # the wrong one is the point


def test_a_prefix_that_would_need_escaping_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Scenario(1, 1, START_MS, 1.0, prefix='"')


def test_the_demo_spec_knows_every_type() -> None:
    spec = load_spec(DEMO_SPEC)
    assert set(spec.kind_of_type) == set(TYPES)
    roles = {event_type: spec.kinds[kind].role for event_type, kind in spec.kind_of_type.items()}
    assert [roles[name] for name in TYPES[:ACTIVITY_TYPES]] == ["activity"] * ACTIVITY_TYPES
    assert Layout(spec).itemsize <= 1024
    assert (roles["newsletter"], roles["plan_changed"], roles["account_closed"]) == (
        "contact",
        "attribute",
        "terminal",
    )
    assert next(kind for kind in spec.kinds if kind.attribute).categories == PLANS
