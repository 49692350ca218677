"""What waits for its partition: bounded, joined as far as it may be, and quick to let go."""

import asyncio

import pytest

from ebbtide.stream.batch import FetchedBatch, FetchFault
from ebbtide.stream.errors import UnreadableBatch
from ebbtide.stream.queue import Inbox
from tests.support.seams.streams import LogRecord


def batch(start: int, end: int, seek_id: int = 1) -> FetchedBatch:
    return FetchedBatch("t", 0, seek_id, start, end, [LogRecord(n, 0, b"", b"") for n in range(start, end)])


@pytest.fixture
def said() -> list[str]:
    return []


def inbox_of(said: list[str], batches_max: int = 4, records_max: int = 10) -> Inbox:
    return Inbox(batches_max, records_max, lambda: said.append("pause"), lambda: said.append("resume"))


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_wait_ends(turns: int) -> None:
    """However many turns of the loop lie between a batch's arrival and the cancellation of a revoked partition: the
    wait either was over already or ends cancelled, and never goes on as if nothing had happened."""
    inbox = inbox_of([])
    waiting = asyncio.create_task(inbox.arrives(5.0))
    for _ in range(3):
        await asyncio.sleep(0)
    inbox.put(batch(0, 1))
    for _ in range(turns):
        await asyncio.sleep(0)
    was_waiting = waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled() == was_waiting


def took(inbox: Inbox) -> FetchedBatch:
    fetched = inbox.take()
    assert isinstance(fetched, FetchedBatch)
    return fetched


async def test_a_fault_is_met_in_its_turn_and_joined_to_nothing() -> None:
    inbox = inbox_of([], records_max=10)
    fault = FetchFault("t", 0, 1, 8, UnreadableBatch("no"))
    for fetched in (batch(0, 4), batch(4, 8), fault, batch(8, 9)):
        inbox.put(fetched)
    assert (took(inbox).end, inbox.take(), took(inbox).start) == (8, fault, 8)


async def test_a_full_inbox_pauses_once_and_resumes_half_empty(said: list[str]) -> None:
    """What was on its way when the pause came is kept."""
    inbox = inbox_of(said, batches_max=4, records_max=1)
    for n in range(6):
        inbox.put(batch(n, n + 1))
    assert (said, len(inbox)) == (["pause"], 6)
    starts = []
    while inbox:
        starts.append(took(inbox).start)
        assert said == (["pause"] if len(inbox) >= 2 else ["pause", "resume"])
    assert starts == list(range(6))


async def test_what_waited_is_joined_up_to_so_many_records() -> None:
    """Only what follows: not over a gap, and not into another epoch; a batch that is too large by itself goes alone."""
    inbox = inbox_of([], records_max=10)
    for piece in (
        batch(0, 4),
        batch(4, 10),
        batch(10, 11),
        batch(12, 30),
        batch(30, 31),
        batch(31, 33, seek_id=2),
    ):
        inbox.put(piece)
    taken = []
    while inbox:
        taken.append(took(inbox))
    assert [(b.seek_id, b.start, b.end, len(b.records)) for b in taken] == [
        (1, 0, 10, 10),
        (1, 10, 11, 1),
        (1, 12, 30, 18),
        (1, 30, 31, 1),
        (2, 31, 33, 2),
    ]


async def test_a_closed_inbox_takes_nothing_and_keeps_nobody_waiting(said: list[str]) -> None:
    inbox = inbox_of(said)
    assert not await inbox.arrives(0.01)
    waiting = asyncio.create_task(inbox.arrives(60.0))
    await asyncio.sleep(0)
    inbox.put(batch(0, 1))
    assert await waiting
    inbox.close()
    inbox.put(batch(1, 2))
    inbox.resume()
    assert (len(inbox), said) == (1, ["pause"])
    assert await inbox.arrives(60.0)
    inbox.clear()
    assert not inbox
