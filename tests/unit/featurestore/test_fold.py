"""The fold beside an oracle that was written apart, over random specs and streams; each case prints its seed.

What must hold whatever comes: the same figures and the same points as the definition; the same bytes however the log
is cut; nothing changed by a producer's duplicates, by other customers between, or by time that passes before the next
event.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.fold import (
    EVENT,
    EXPIRED,
    RESET,
    RETURNED,
    SILENCE,
    TERMINAL,
    Folder,
    Points,
)
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.record.loop import elapse_rows, fold_events
from ebbtide.featurestore.record.replay import replay, state_at
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS
from tests.support.oracle.histories import (
    START,
    History,
    State,
    columns,
    of,
    one,
    random_history,
    random_spec,
)
from tests.support.oracle.oracle import TOMBSTONE, Event, no_news, walk
from tests.support.oracle.records import differences, expected, recorded

SEEDS = range(60)
CAUSES = (EVENT, SILENCE, TERMINAL, RESET, RETURNED, EXPIRED)


def fold_all(spec: Spec, history: History) -> tuple[EventBatch, Rows, Points]:
    layout, batch = Layout(spec), columns(history)
    rows, points = Folder(layout).fold(layout.empty(len(batch.customers)), batch)
    return batch, rows, points


def told(points: Points, customer: int) -> list[tuple[int, int, bytes]]:
    """As of when, why, and the bytes of the row: of one customer's points, in order."""
    return [
        (int(points.as_of[m]), int(points.cause[m]), points.rows[m].tobytes())
        for m in np.flatnonzero(points.customer == customer)
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_and_points_are_the_oracles(seed: int) -> None:
    """Times, causes, counts exactly, floats to 32-bit sums; at points and at the end, then and a while later."""
    spec = random_spec(seed)
    history = random_history(spec, seed, 150)
    batch, rows, points = fold_all(spec, history)
    layout, later = Layout(spec), int(np.random.default_rng(seed).integers(0, spec.memory_ms))
    for i, customer in enumerate(batch.customers):
        wanted, life = walk(spec, of(history, customer))
        own = np.flatnonzero(points.customer == i)
        got = [(int(points.as_of[m]), int(points.cause[m])) for m in own]
        assert got == [(point.as_of, point.cause) for point in wanted], f"{spec.name}, {customer}"
        places = np.flatnonzero(batch.customer == i)
        assert [int(points.event[m]) for m in own] == [places[point.event] for point in wanted]
        for m, point in list(zip(own, wanted, strict=True))[:: max(1, len(own) // 25)]:
            facts = recorded(layout, points.rows[m], point.as_of)
            assert not differences(facts, expected(point.life, point.as_of)), f"{spec.name}, point {m}"
        for as_of in (life.clock, life.clock + later):
            facts = recorded(layout, rows[i], as_of)
            assert not differences(facts, expected(life, as_of)), f"{spec.name}, {customer} as of {as_of}"


@pytest.mark.parametrize("seed", SEEDS)
def test_cutting_the_log_into_batches_changes_no_byte(seed: int) -> None:
    """In pieces of random size, and one event at a time, with the rows stored and loaded between."""
    spec = random_spec(seed)
    history = random_history(spec, seed, 200)
    layout, rng = Layout(spec), np.random.default_rng(seed)
    batch, rows, points = fold_all(spec, history)
    whole = {name: (rows[i].tobytes(), told(points, i)) for i, name in enumerate(batch.customers)}
    cuts = np.sort(rng.choice(np.arange(1, len(history)), 12, replace=False))
    for edges in ([0, *map(int, cuts), len(history)], range(len(history) + 1)):
        state = State(layout)
        seen: dict[str, list[tuple[int, int, bytes]]] = {name: [] for name in batch.customers}
        for start, end in pairwise(edges):
            piece = columns(history[start:end])
            new, some = Folder(layout).fold(state.load(piece.customers), piece)
            state.store(piece.customers, new)
            for i, name in enumerate(piece.customers):
                seen[name] += told(some, i)
        assert {name: (state.rows[name].tobytes(), seen[name]) for name in batch.customers} == whole, (
            spec.name
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_late_and_duplicate_events_are_counted(seed: int) -> None:
    spec = random_spec(seed)
    history = random_history(spec, seed, 60)
    batch = columns(history)
    layout = Layout(spec)
    _, _, counts = Folder(layout).fold_counted(layout.empty(len(batch.customers)), batch)
    wanted = [no_news(spec, of(history, customer)) for customer in batch.customers]
    assert counts == tuple(map(sum, zip(*wanted, strict=True)))


@pytest.mark.parametrize("seed", SEEDS)
def test_producer_duplicates_change_nothing(seed: int) -> None:
    """An event resent while its id is remembered leaves rows and points as they were, bytes and all.

    ──●a──●b──●a'──●b'──●c──▶   a' and b' are a and b once more, at most `dedupe` events of the customer later
    """
    spec = random_spec(seed)
    spec = spec.model_copy(update={"dedupe": max(2, spec.dedupe)})
    history = random_history(spec, seed, 120, resent=0.0)
    rng = np.random.default_rng(seed)
    resent: History = []
    for index, (customer, event) in enumerate(history):
        resent.append((customer, event))
        if rng.random() < 0.5:
            _, life = walk(spec, of(history[: index + 1], customer))
            remembered = [known for known in life.events if known.id][-spec.dedupe :]
            resent += [(customer, known) for known in remembered if rng.random() < 0.5]
    assert len(resent) > len(history) + 20
    batch, rows, points = fold_all(spec, history)
    _, again, same = fold_all(spec, resent)
    assert again.tobytes() == rows.tobytes(), spec.name
    for i in range(len(batch.customers)):
        assert told(same, i) == told(points, i), spec.name


@pytest.mark.parametrize("seed", SEEDS)
def test_a_timer_takes_what_the_next_event_would(seed: int) -> None:
    """Before each event time passes, up to that event's time or less; no byte of rows or points differs: of silences,
    and of records that expire.

    by the next event   ●────────────────────●      both silences taken when the second event comes
    by time             ●──────×──────×──────●      × elapse(until)
    """
    spec = random_spec(seed)
    history = random_history(spec, seed, 120)
    layout, rng = Layout(spec), np.random.default_rng(seed)
    folder, state = Folder(layout), State(layout)
    batch, rows, points = fold_all(spec, history)
    seen: dict[str, list[tuple[int, int, bytes]]] = {name: [] for name in batch.customers}
    for customer, event in history:
        row = state.load([customer])
        duplicate = event.id and event.id in row["recent_id"][0]
        if event.kind != TOMBSTONE and not duplicate:
            for share in (rng.random(), 1.0):
                until = int(
                    row["row_watermark"][0] + share * max(0, event.time - int(row["row_watermark"][0]))
                )
                row, some = folder.elapse(row, until)
                assert (some.event == -1).all()
                seen[customer] += told(some, 0)
        row, some = folder.fold(row, columns([(customer, event)]))
        assert duplicate or event.kind == TOMBSTONE or not some.of_time.any()
        seen[customer] += told(some, 0)
        state.store([customer], row)
    for i, name in enumerate(batch.customers):
        assert state.rows[name].tobytes() == rows[i].tobytes(), spec.name
        assert seen[name] == told(points, i), spec.name


@pytest.mark.parametrize("seed", SEEDS[:15])
def test_replaying_a_log_offline_is_the_same_bytes(seed: int) -> None:
    """`replay` works a log off in chunks and ends with the silences before a date: as a store would have, by itself."""
    spec = random_spec(seed)
    history = random_history(spec, seed, 200)
    layout, batch = Layout(spec), columns(history)
    until = int(batch.time.max()) + 30 * DAY_MS
    rows, points = Folder(layout).fold(layout.empty(len(batch.customers)), batch)
    _, last = Folder(layout).elapse(rows, until)
    chunks = list(replay(layout, batch, until, chunk=17))
    for i in range(len(batch.customers)):
        assert [one for chunk in chunks for one in told(chunk, i)] == told(points, i) + told(last, i)
    assert state_at(layout, batch, until, chunk=23).tobytes() == rows.tobytes()


@pytest.mark.parametrize("seed", SEEDS[:15])
def test_customers_do_not_touch_each_other(seed: int) -> None:
    spec = random_spec(seed)
    history = random_history(spec, seed, 250, customers=6)
    batch, rows, points = fold_all(spec, history)
    for i, name in enumerate(batch.customers):
        _, alone, own = fold_all(spec, [(customer, event) for customer, event in history if customer == name])
        assert alone[0].tobytes() == rows[i].tobytes()
        assert told(own, 0) == told(points, i)
    assert np.all(np.diff(points.event) >= 0), "points come in the order of the events that brought them"


@pytest.mark.parametrize("seed", SEEDS[:15])
def test_points_of_a_customer_never_move_back_until_forgotten(seed: int) -> None:
    spec = random_spec(seed)
    history = [(name, event) for name, event in random_history(spec, seed, 300) if event.kind != TOMBSTONE]
    batch, _, points = fold_all(spec, history)
    for i in range(len(batch.customers)):
        assert np.all(np.diff(points.as_of[points.customer == i]) >= 0)


@pytest.mark.parametrize("seed", SEEDS[:15])
def test_fold_and_elapse_leave_their_input_alone(seed: int) -> None:
    """Also when it cannot be written to, and when its columns lie apart in memory."""
    spec = random_spec(seed)
    layout, batch = Layout(spec), columns(random_history(spec, seed, 100))
    folder = Folder(layout)
    rows, _ = folder.fold(layout.empty(len(batch.customers)), batch)
    apart = replace(
        batch,
        kind=np.repeat(batch.kind, 2)[::2],
        time=np.repeat(batch.time, 2)[::2],
        value=np.repeat(batch.value, 2)[::2],
        event_id=np.repeat(batch.event_id, 2)[::2],
    )
    for column in (apart.customer, apart.kind, apart.time, apart.value, apart.event_id, rows):
        column.flags.writeable = False
    before, wanted = rows.tobytes(), folder.fold(rows.copy(), batch)
    got = folder.fold(rows, apart)
    assert got[0].tobytes() == wanted[0].tobytes()
    assert got[1].rows.tobytes() == wanted[1].rows.tobytes()
    folder.elapse(rows, START * 2)
    folder.due(rows)
    folder.eligible(rows, START)
    assert rows.tobytes() == before


@pytest.mark.parametrize("seed", SEEDS)
def test_due_is_the_next_silence_and_at_last_expiry(seed: int) -> None:
    """And `eligible` is the oracle's, at any time from the clock on."""
    spec = random_spec(seed)
    history = random_history(spec, seed, int(np.random.default_rng(seed).integers(5, 60)), customers=8)
    batch, rows, _ = fold_all(spec, history)
    folder, rng = Folder(Layout(spec)), np.random.default_rng(seed)
    until = np.zeros(len(rows), np.int64)
    for _ in range(80):
        dues = folder.due(rows)
        for i, customer in enumerate(batch.customers):
            _, life = walk(spec, of(history, customer), int(until[i]))
            if not life.events:
                assert rows[i].tobytes() == bytes(rows.itemsize)
                continue
            silence = life.next_silence()
            assert dues[i] == (life.expiry if silence is None else silence)
            as_of = life.clock + int(rng.integers(0, spec.memory_ms))
            assert folder.eligible(rows, as_of)[i] == life.eligible(as_of)
        until = np.maximum(until, dues + 1)
        rows, points = folder.elapse(rows, until)
        assert points.of_time.all()
    assert not rows["event_time"].any(), "time alone ends every life"


def test_one_compilation_serves_every_spec_and_every_batch() -> None:
    """A second would stop the worker for seconds: batches of 0, 1 and many customers, specs that lack a part."""
    for seed in SEEDS[:10]:
        spec = random_spec(seed)
        layout = Layout(spec)
        for n, customers in ((1, 1), (40, 1), (40, 5)):
            _, rows, _ = fold_all(spec, random_history(spec, seed, n, customers))
            Folder(layout).elapse(rows, START)
        Folder(layout).fold(layout.empty(0), columns([]))
        Folder(layout).elapse(layout.empty(0), START)
    assert len(fold_events.signatures) == 1
    assert len(elapse_rows.signatures) == 1


def test_more_points_than_room_was_made_for() -> None:
    """After each long silence one event brings a whole schedule, ten points and more."""
    spec = random_spec(0)
    spec = spec.model_copy(update={"silence": spec.silence.model_copy(update={"ratio": 1.1})})
    visit = [kind.name for kind in spec.kinds].index("visit")
    history = one(*(Event(visit, START + n * (spec.memory_ms - 1)) for n in range(30)))
    layout, batch = Layout(spec), columns([*history, *history[-1:]])
    _, points, counts = Folder(layout).fold_counted(layout.empty(1), batch)
    wanted, _ = walk(spec, of([*history, *history[-1:]], "c"))
    assert len(points) > 10 * 29
    assert counts == no_news(spec, of([*history, *history[-1:]], "c"))
    assert list(zip(points.as_of, points.cause, strict=True)) == [(p.as_of, p.cause) for p in wanted]


def test_the_random_streams_hold_every_case() -> None:
    """A property is worth what its streams hold: each rule must have been in play."""
    causes, late, duplicates, saturated, ties = [], 0, 0, 0, 0
    for seed in SEEDS:
        spec = random_spec(seed)
        history = random_history(spec, seed, 150)
        layout, batch = Layout(spec), columns(history)
        rows, points, counts = Folder(layout).fold_counted(layout.empty(len(batch.customers)), batch)
        causes += points.cause.tolist()
        late += counts.late
        duplicates += counts.duplicates
        saturated += int((rows["ring_kind"] > 0).all(axis=1).sum())
        ties += int((np.diff(batch.time) == 0).sum())
    assert min(causes.count(cause) for cause in CAUSES) > 100, [causes.count(cause) for cause in CAUSES]
    assert min(late, duplicates, saturated, ties) > 50, (late, duplicates, saturated, ties)
