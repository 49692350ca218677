"""What waits for its partition: bounded, joined as far as it may be, and one budget for all partitions."""

import pytest

from ebbtide.stream.batch import Fetched, FetchedBatch, FetchFault
from ebbtide.stream.errors import UnreadableBatch
from ebbtide.stream.turn.queue import Budget, Queue, bytes_of
from tests.support.seams.streams import LogRecord


def batch(start: int, end: int, seek_id: int = 1, value: bytes = b"") -> FetchedBatch:
    return FetchedBatch("t", 0, seek_id, start, end, [LogRecord(n, 0, b"", value) for n in range(start, end)])


@pytest.fixture
def said() -> list[str]:
    return []


def queue_of(said: list[str], batches_max: int = 4, budget: Budget | None = None, name: str = "") -> Queue:
    budget = budget or Budget(1 << 20)
    return Queue(
        batches_max, budget, lambda: said.append("pause" + name), lambda: said.append("resume" + name)
    )


def drained(queue: Queue, records_max: int) -> list[FetchedBatch]:
    """All that it holds; there must be batches only."""
    taken = []
    while (each := queue.take(records_max)) is not None:
        assert isinstance(each, FetchedBatch)
        taken.append(each)
    return taken


def test_a_fault_is_met_in_its_turn_and_joined_to_nothing() -> None:
    queue = queue_of([])
    fault = FetchFault("t", 0, 1, 8, UnreadableBatch("no"))
    waiting: list[Fetched] = [batch(0, 4), batch(4, 8), fault, batch(8, 9)]
    for fetched in waiting:
        queue.put(fetched)
    first, second = queue.take(10), queue.take(10)
    assert isinstance(first, FetchedBatch)
    assert (first.end, second, [b.start for b in drained(queue, 10)]) == (8, fault, [8])


def test_a_full_queue_pauses_once_and_resumes_half_empty(said: list[str]) -> None:
    """What was on its way when the pause came is kept."""
    queue = queue_of(said)
    for n in range(6):
        queue.put(batch(n, n + 1))
    assert (said, len(queue), queue.records) == (["pause"], 6, 6)
    starts = []
    while len(queue):
        (starts_at,) = [each.start for each in [queue.take(1)] if isinstance(each, FetchedBatch)]
        starts.append(starts_at)
        assert said == (["pause"] if len(queue) >= 2 else ["pause", "resume"])
    assert starts == list(range(6))
    assert queue.records == 0


def test_what_waited_is_joined_up_to_so_many_records() -> None:
    """Only what follows: not over a gap, and not into another seek; a batch that is too large by itself goes alone."""
    queue = queue_of([])
    for piece in (
        batch(0, 4),
        batch(4, 10),
        batch(10, 11),
        batch(12, 30),
        batch(30, 31),
        batch(31, 33, seek_id=2),
    ):
        queue.put(piece)
    assert [(b.seek_id, b.start, b.end, len(b.records)) for b in drained(queue, 10)] == [
        (1, 0, 10, 10),
        (1, 10, 11, 1),
        (1, 12, 30, 18),
        (1, 30, 31, 1),
        (2, 31, 33, 2),
    ]


def test_a_closed_queue_takes_nothing(said: list[str]) -> None:
    queue = queue_of(said)
    queue.put(batch(0, 1))
    queue.close()
    queue.put(batch(1, 2))
    queue.resume()
    assert (len(queue), said) == (1, ["pause"])
    queue.clear()
    assert queue.take(10) is None


def test_one_budget_bounds_the_bytes_of_all_queues(said: list[str]) -> None:
    """Beyond it whoever holds something pauses, whoever holds nothing still gets a batch; half free, all resume."""
    budget = Budget(1_000)
    queues = [queue_of(said, 100, budget, str(n)) for n in range(4)]
    piece = batch(0, 4, value=b"x" * 100)
    assert bytes_of(piece) == 400
    for queue in queues[:3]:
        queue.put(piece)
    assert (said, budget.used) == (["pause2"], 1_200)
    queues[3].put(piece)
    queues[0].put(batch(4, 8, value=b"x" * 100))
    assert said == ["pause2", "pause3", "pause0"]
    for queue in queues:
        drained(queue, 1)
    assert budget.used == 0
    assert sorted(said[3:]) == ["resume0", "resume2", "resume3"]
