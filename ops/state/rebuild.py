"""A state made again beside the worker that has one: the retained log through the same pipeline, up to the committed
offset.

    log     begin ══════════════════ mark ── ─ ─▶
            │  this command, silent  │   the old worker goes on, and the committed offset with it
    then    redis.prefix is switched: the new workers catch up silently to the committed offset, and speak from there

It knows rounds: each reads the committed offsets and brings every partition there; a round that is over before its
committed offsets are a second old is the last. It refuses to know what a step does (`stream/pipeline.py`), what a
committed offset means (`stream/decision/suppression.py`) and whether there is anything to do (`ops/state/plan.py`). The
invariant: nothing is sent, and no record beyond the committed offset is folded, since what lies there has not been
decided by anyone yet, and whoever decides it has to say so. What was applied is kept: a rebuild that was interrupted
goes on from the checkpoints it finds.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ebbtide.featurestore.errors import Fenced, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import TimerCursor
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX, DUE_AT_ALL_MS
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.state.plan import NotOurs, Plan, open_ours
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.decision.suppression import Suppression
from ebbtide.stream.errors import BrokerUnavailable, ScorerUnavailable
from ebbtide.stream.kafka.committed_log import CommittedLog
from ebbtide.stream.outputs.message import AtLeastOnce, Message
from ebbtide.stream.pipeline import Pipeline, Tools
from ebbtide.stream.retry import Backoff
from ebbtide.stream.telemetry import Telemetry, TurnDone
from ebbtide.stream.turn.flood import FloodGuard
from ebbtide.stream.turn.opened import LogState, Opened
from ebbtide.stream.turn.work import Piece

log = logging.getLogger(__name__)

FRESH_S = 1.0
"""A worker commits its committed offset every second: closer than this nobody can be."""
FOLLOW_EVERY_S = 0.5
OUTAGE_S_MAX = 120.0
"""For so long a server may be away. A rebuild that is given up is begun again where it ended."""
LOG_EVERY_S = 10.0
AWAY = (StoreUnavailable, BrokerUnavailable, ScorerUnavailable)

Progress = Callable[[float, float, str], None]


class ForbiddenSink(AtLeastOnce):
    """A sink that is given nothing. What it is given all the same would be said a second time."""

    async def send_all(self, messages: Sequence[Message]) -> None:
        if messages:
            raise RuntimeError(f"a rebuild was about to send {len(messages)} messages")

    def abandon(self) -> None:
        """It holds nothing."""


@dataclass(slots=True)
class Rebuilt:
    """One partition: offsets [start, end) took `seconds`; `rejected` of the `records` are bad under this spec."""

    partition: int
    start: int
    end: int
    records: int = 0
    rejected: int = 0
    seconds: float = 0.0


class Counts(Telemetry):
    """Records and bad records by partition, as the turns tell them."""

    def __init__(self) -> None:
        self.records: dict[int, int] = {}
        self.rejected: dict[int, int] = {}

    def turn_done(self, turn: TurnDone) -> None:
        for piece in turn.pieces:
            self.records[piece.partition] = self.records.get(piece.partition, 0) + piece.records
            self.rejected[piece.partition] = self.rejected.get(piece.partition, 0) + piece.rejected


class Rebuild:
    """All partitions of a plan, sharing one batcher. `run` brings them to the committed offset, `stop` ends it in
    good order."""

    def __init__(
        self,
        settled: CommittedLog,
        tools: Tools,
        counts: Counts,
        begun: Plan,
        *,
        dead_letter_share_max: float,
    ) -> None:
        self._settled, self._tools, self._counts = settled, tools, counts
        self._clock = tools.clock
        self._stop = asyncio.Event()
        self._parts = {
            number: _Part(number, settled, tools, begun, dead_letter_share_max, self._stop)
            for number in begun.start
        }
        self._committed: dict[int, CommittedOffset] = {}

    def stop(self) -> None:
        """Finish the steps in hand, and no more."""
        self._stop.set()

    async def run(self, progress: Progress = lambda *_: None, *, follow: bool = False) -> list[Rebuilt]:
        """Until every partition is at a committed offset that is less than FRESH_S old; with `follow` until `stop`.

        Raises NotOurs, CheckpointOutsideLog, DeadLetterFlood, and what AWAY names when it lasts longer than
        OUTAGE_S_MAX.
        """
        helpers = [
            asyncio.create_task(self._tools.batcher.run(), name="batcher"),
            asyncio.create_task(self._tell(progress), name="progress"),
        ]
        try:
            while True:
                read_s = self._clock.monotonic_s()
                self._committed = await self._read_committed()
                await _all(
                    part.reach(self._committed[n]) for n, part in self._parts.items() if n in self._committed
                )
                if self._stop.is_set() or (not follow and self._clock.monotonic_s() - read_s < FRESH_S):
                    return self.done()
                if follow:
                    await _wait(self._stop, FOLLOW_EVERY_S)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    def done(self) -> list[Rebuilt]:
        """What was done so far, by partition."""
        records, rejected = self._counts.records, self._counts.rejected
        return [
            Rebuilt(n, part.start, part.position, records.get(n, 0), rejected.get(n, 0), part.seconds)
            for n, part in self._parts.items()
        ]

    async def _read_committed(self) -> dict[int, CommittedOffset]:
        """The committed offsets, asked for until Kafka answers."""
        backoff = Backoff(OUTAGE_S_MAX, self._clock.monotonic_s)
        while True:
            try:
                return await self._settled.committed()
            except AWAY as error:
                await _pause(backoff, error, self._stop)

    async def _tell(self, progress: Progress) -> None:
        told_s = self._clock.monotonic_s()
        while True:
            done = sum(part.position - part.start for part in self._parts.values())
            known = [
                (self._committed[n].offset, part) for n, part in self._parts.items() if n in self._committed
            ]
            left = sum(max(0, committed - part.position) for committed, part in known)
            progress(done, done + left, f"{done:,} offsets, {left:,} to the committed offset")
            if self._clock.monotonic_s() - told_s >= LOG_EVERY_S:
                told_s = self._clock.monotonic_s()
                log.info("rebuilding", extra={"done": done, "left": left})
            await asyncio.sleep(0.25)


class _Part:
    """One partition of a rebuild."""

    def __init__(
        self,
        number: int,
        settled: CommittedLog,
        tools: Tools,
        begun: Plan,
        share_max: float,
        stop: asyncio.Event,
    ) -> None:
        self.start = self.position = begun.start[number]
        self.seconds = 0.0
        self._pipeline = Pipeline(tools)
        self._number, self._settled, self._tools, self._stop = number, settled, tools, stop
        self._flood = FloodGuard(share_max)
        self._opened: Opened | None = None
        self._backoff = Backoff(OUTAGE_S_MAX, tools.clock.monotonic_s)

    async def reach(self, until: CommittedOffset) -> None:
        """Fold up to `until`, and take timers as far as they were then; or until told to stop."""
        began_s = self._tools.clock.monotonic_s()
        try:
            while not self._stop.is_set():
                try:
                    await self._fold(until)
                    return
                except AWAY as error:
                    self._opened = None
                    await _pause(self._backoff, error, self._stop)
                except Fenced as error:
                    # A commit whose answer was lost may still arrive after we asked where we are. Once.
                    self._opened = None
                    if not self._backoff.attempts:
                        raise NotOurs(
                            f"somebody else moves the state under this prefix: {error}",
                            hint="a worker uses it, or another rebuild: end that, or choose another prefix",
                        ) from error
                    self._backoff.reset()
        finally:
            self.seconds += self._tools.clock.monotonic_s() - began_s

    async def _fold(self, until: CommittedOffset) -> None:
        opened = self._opened or await self._open()
        while not self._stop.is_set():
            batch = await self._settled.next(self._number, until.offset)
            if batch is None:
                await take_timers(
                    self._pipeline, self._tools.store, opened, Suppression.by(until).timers_from
                )
                return
            opened.check_follows(batch)
            for piece in opened.beyond_history(batch).cut_before_tombstones():
                error = (await self._pipeline.turn([Piece(opened, piece)]))[self._number]
                if error is not None:
                    raise error
                self.position = opened.checkpoint.offset
            self._backoff.reset()

    async def _open(self) -> Opened:
        tools, number = self._tools, self._number
        begin, end = (await self._settled.ranges())[number]
        log_state = LogState(self._settled.partitions, begin, end, None)
        # Without a checkpoint also when the store has lost what was there: then all of it is made once more.
        opened = await open_ours(tools.store, tools.layout.id, number, log_state, self._flood)
        self.position = opened.checkpoint.offset
        self._settled.seek(number, opened.checkpoint.offset)
        self._opened = opened
        return opened


async def take_timers(pipeline: Pipeline, store: Store, opened: Opened, until: TimerCursor) -> None:
    """Take who is due at or before `until`, so that the state is where the worker's is."""
    page = opened.due
    while opened.checkpoint.timers < until:
        if not page.ready(until, to_the_end=True):
            page.answer(*await store.due(opened.partition, DUE_AT_ALL_MS, page.ask()))
            continue
        piece = Piece(opened, None, page.take(until, CUSTOMERS_MAX))
        error = (await pipeline.turn([piece]))[opened.partition]
        if error is not None:
            raise error


async def _pause(backoff: Backoff, error: Exception, stop: asyncio.Event) -> None:
    """Before the next try. Raises `error` when it has been like this for too long."""
    wait_s = backoff.next_s(error)
    log.warning("waiting", extra={"reason": str(error)})
    await _wait(stop, wait_s)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All at once; the first error ends the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
