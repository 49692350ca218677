"""A log walked through in parts, by one process or several: the same bytes, late events and ties among them."""

from dataclasses import fields

import numpy as np
import pytest

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.parts.engine import JobFailed
from ebbtide.featurestore.parts.part import Part, parts_of
from ebbtide.featurestore.parts.processes import EVENTS_A_JOB_MIN, Processes
from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.examples.jobs import gather_by
from ebbtide.model.examples.sample import Gathered, Panel, Wanted, gather, merged
from tests.support.oracle.histories import columns, random_history, random_spec
from tests.support.seams.models import TINY


def case(seed: int, n: int = 1_500) -> tuple[Layout, EventBatch, Wanted]:
    """A history with late events; every fifth event twice, as clicks of one millisecond are."""
    spec: Spec = random_spec(seed) if seed else TINY
    history = random_history(spec, seed, n, customers=23)
    log = columns([event for i, event in enumerate(history) for event in [event] * (1 + (i % 5 == 0))])
    first, last = int(log.time.min()), int(log.time.max())
    panel = Panel((first + last) // 2, last, np.arange(len(log.customers)) % 2 == 0)
    dates = tuple(range(first + DAY_MS, last, max((last - first) // 9, 1)))
    return Layout(spec), log, Wanted(last + spec.horizon_ms, dates, 200, seed, (panel,))


def visits(n: int) -> EventBatch:
    """n events of three hundred customers in two months, two of a customer in one millisecond now and then."""
    rng = np.random.default_rng(0)
    start, customer = 20_000 * DAY_MS, rng.integers(0, 300, n // 2).astype(np.int32)
    time = start + np.sort(rng.integers(0, 60 * DAY_MS, n // 2))
    return EventBatch(
        [f"c{i}" for i in range(300)], np.repeat(customer, 2), np.zeros(n, np.uint8),
        np.repeat(time, 2) + np.tile([0, 0, 0, 1], n // 4), np.full(n, np.nan), np.zeros(n, np.uint64), np.arange(n),
    )  # fmt: skip


def big_case() -> tuple[Layout, EventBatch, Wanted]:
    """Enough events for two processes."""
    log = visits(EVENTS_A_JOB_MIN * 2)
    last = int(log.time.max())
    panel = Panel(last - 3 * DAY_MS, last, np.arange(300) < 20)
    return Layout(TINY), log, Wanted(last, (last - 20 * DAY_MS,), 200, 0, (panel,))


def same(a: Points, b: Points) -> bool:
    """The events that brought points about are numbered within the part."""
    return all(
        getattr(a, f.name).tobytes() == getattr(b, f.name).tobytes()
        for f in fields(Points)
        if f.name != "event"
    )


def check(found: Gathered, expected: Gathered) -> None:
    assert len(expected.decisions) == 100, "a sample, not all there is"
    assert len(expected.panels[0]) > 0
    assert same(found.decisions, expected.decisions)
    assert same(found.snapshots, expected.snapshots)
    assert same(found.panels[0], expected.panels[0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parts", [2, 5])
def test_parts_together_are_the_whole(seed: int, parts: int) -> None:
    layout, log, wanted = case(seed)
    whole = gather(layout, Part.whole(log), wanted)
    found = [gather(layout, part, wanted) for part in parts_of(log, parts)]
    check(merged(layout, found, wanted), whole)


def test_two_processes_give_the_bytes_of_one() -> None:
    layout, log, wanted = big_case()
    done: list[float] = []
    check(gather_by(Processes(2), layout, log, wanted, done.append), gather(layout, Part.whole(log), wanted))
    assert done == [0.5, 1.0]


def test_what_fails_in_a_process_is_raised_here() -> None:
    layout, log, wanted = big_case()
    broken = Wanted(wanted.known_until_ms, wanted.snapshots, 200, 0, (Panel(0, 2**62, np.ones(1, np.bool_)),))
    with pytest.raises(JobFailed) as caught:
        gather_by(Processes(2), layout, log, broken, lambda _: None)
    assert isinstance(caught.value.__cause__, IndexError)
