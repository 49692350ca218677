"""Labels beside their definition, read off a customer's list of events."""

import numpy as np
import pytest

from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.examples.labels import CANCELLED, CHURNED, NEVER, STAYED, UNKNOWN, Labeller
from tests.support.oracle.histories import START, History, columns, of, one, random_history, random_spec
from tests.support.oracle.oracle import TOMBSTONE, Event, is_one_of, is_target
from tests.support.seams.models import SPEC

VISIT, PURCHASE, MAIL, GOODBYE = range(4)
H = SPEC.horizon_ms
FAR = START + 10_000 * DAY_MS


def label_of(history: History, as_of: int, known_until: int = FAR, spec: Spec = SPEC) -> int:
    log = columns(history)
    return int(Labeller(spec, log, known_until).label(np.zeros(1, np.int32), np.array([as_of]))[0])


def naive(spec: Spec, events: list[Event], as_of: int, known_until: int, target: int = 0) -> int:
    """The definition: whichever comes first in (as_of, as_of + H], if all of it is known."""

    def is_ours(event: Event) -> bool:
        return is_one_of(spec, spec.targets[target], event) if spec.targets else is_target(spec, event)

    if as_of + spec.horizon_ms >= known_until:
        return UNKNOWN
    follows = [e for e in events if e.kind != TOMBSTONE and as_of < e.time <= as_of + spec.horizon_ms]
    ours = [e.time for e in follows if is_ours(e)]
    leaves = [e.time for e in follows if spec.kinds[e.kind].role == "terminal" and not is_ours(e)]
    if leaves and (not ours or min(leaves) < min(ours)):
        return CANCELLED
    absence = not spec.targets or spec.targets[target].churn_when == "absent"
    return CHURNED if bool(ours) != absence else STAYED


@pytest.mark.parametrize("seed", range(30))
def test_labels_are_their_definition(seed: int) -> None:
    spec = random_spec(seed)
    history = random_history(spec, seed, 200, customers=4)
    log = columns(history)
    rng = np.random.default_rng(seed)
    customer = rng.integers(0, len(log.customers), 300).astype(np.int32)
    # At events, a millisecond or a horizon beside them, and anywhere.
    offset = rng.choice([0, 1, -1, spec.horizon_ms, -spec.horizon_ms, DAY_MS // 3], 300)
    as_of = rng.choice(log.time, 300) + offset
    known_until = int(np.quantile(log.time, 0.9))
    labeller = Labeller(spec, log, known_until)
    rows = [
        (of(history, log.customers[c]), int(t))
        for c, t in zip(customer.tolist(), as_of.tolist(), strict=True)
    ]
    labels = labeller.labels(customer, as_of)
    for target in range(len(spec.target_names)):
        expected = [naive(spec, events, t, known_until, target) for events, t in rows]
        assert labels[:, target].tolist() == labeller.label(customer, as_of, target).tolist() == expected


def test_a_wait_ends_with_the_target_and_is_seen_until_a_leave() -> None:
    """
    day    0      3        5         9 known until
    visit  ●      ●
    leave                  ●
    """
    day = DAY_MS
    history = one(Event(VISIT, START), Event(VISIT, START + 3 * day), Event(GOODBYE, START + 5 * day))
    labeller = Labeller(SPEC, columns(history), START + 9 * day)
    customer, as_of = np.zeros(3, np.int32), START + np.array([0, 3 * day, 6 * day])
    assert labeller.wait_ms(customer, as_of)[:, 0].tolist() == [3 * day, NEVER, NEVER]
    assert labeller.seen_ms(customer, as_of)[:, 0].tolist() == [5 * day, 2 * day, 3 * day]


def test_the_horizon_is_open_at_its_start_and_closed_at_its_end() -> None:
    assert label_of(one(Event(VISIT, START)), START) == CHURNED
    assert label_of(one(Event(VISIT, START), Event(VISIT, START + 1)), START) == STAYED
    assert label_of(one(Event(VISIT, START), Event(VISIT, START + H)), START) == STAYED
    assert label_of(one(Event(VISIT, START), Event(VISIT, START + H + 1)), START) == CHURNED


def test_what_we_send_is_no_life() -> None:
    assert label_of(one(Event(VISIT, START), Event(MAIL, START + 1)), START) == CHURNED


def test_a_leave_in_so_many_words_is_neither_churn_nor_a_stay() -> None:
    assert label_of(one(Event(VISIT, START), Event(GOODBYE, START + 1)), START) == CANCELLED
    back = one(Event(VISIT, START), Event(GOODBYE, START + 1), Event(VISIT, START + 2))
    assert label_of(back, START) == CANCELLED
    first_back = one(Event(VISIT, START), Event(VISIT, START + 1), Event(GOODBYE, START + 2))
    assert label_of(first_back, START) == STAYED


SALE = {"name": "sale", "kinds": ["purchase"]}


def with_target(**target: object) -> Spec:
    return parse_spec({**dump_spec(SPEC), "targets": [{**SALE, **target}]})


def test_visits_do_not_undo_a_missing_purchase() -> None:
    history = one(Event(PURCHASE, START, 5.0), Event(VISIT, START + 1), Event(PURCHASE, START + 2, 5.0))
    assert label_of(history, START, spec=with_target()) == STAYED
    assert label_of(history[:2], START, spec=with_target()) == CHURNED
    assert label_of(history, START, spec=with_target(where={"above": 5})) == CHURNED
    assert label_of(history, START, spec=with_target(where={"above": 4, "below": 6})) == STAYED


def test_a_leave_is_churn_where_it_is_the_target() -> None:
    leave = with_target(kinds=[SPEC.kinds[GOODBYE].name], churn_when="present")
    history = one(Event(VISIT, START), Event(VISIT, START + 1), Event(GOODBYE, START + 2))
    assert label_of(history, START, spec=leave) == CHURNED
    assert label_of(history[:2], START, spec=leave) == STAYED
    assert label_of(history, START - H, spec=leave) == STAYED


def test_a_row_whose_horizon_is_not_over_has_no_label() -> None:
    """
    as of ├──────── H ────────┤
              ● seen      │ known until: an early return is known, an early silence is not, so neither counts
    """
    history = one(Event(VISIT, START), Event(VISIT, START + 1))
    assert label_of(history, START, known_until=START + H) == UNKNOWN
    assert label_of(history, START, known_until=START + H + 1) == STAYED


def test_the_next_activity_is_its_own_customers() -> None:
    log = columns(
        [("a", Event(VISIT, START)), ("b", Event(VISIT, START + 5)), ("a", Event(VISIT, START + 9))]
    )
    after = Labeller(SPEC, log, FAR).target.after
    customer = np.array([0, 0, 1, 1], np.int32)
    assert after(customer, np.array([START, START + 9, START, START + 5])).tolist() == [
        START + 9,
        NEVER,
        START + 5,
        NEVER,
    ]
    assert Labeller(SPEC, columns([]), FAR).target.after(customer[:1], np.array([START])).tolist() == [NEVER]
