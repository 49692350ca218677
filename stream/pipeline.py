"""The file to read first: what happens to a batch, step by step.

    1 load ─▶ 2 fold ─▶ 3 score ─▶ 4 decide ─▶ 5 apply ─▶ 6 emit ─▶ 7 let the commit advance
    ───────── changes nothing anywhere ──────┘     │          │
                                one atomic step in the store  └ the outbox, until Kafka has acknowledged it

A crash before 5 changes nothing; after 5 the next owner finds the outbox and sends it again, the same ids, the same
bytes. Dead dead letters and scores are sent and acknowledged before 5, so that what the partition moves past is never
lost; after a crash they may be there twice, with the same position.

What was sent before is not sent again (`stream/suppression.py`): a state that is made a second time, by a replay of the
log, takes every step but speaks only from the group's committed offset on. A row that the model cannot score loses its
decision, not its events: a dead letter `unscored` says so.

The pipeline knows no Faust, Redis or TensorFlow: it is given a store, a batcher and a sink that wait out outages by
themselves. It belongs to one partition, and batch n + 1 of it is folded after batch n was decided; the overlap is
between partitions. It refuses nothing and retries nothing: whether a batch continues the last one is asked by
`stream/partition.py`, which also opens the pipeline anew after a fence.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import Fenced
from ebbtide.featurestore.events.event import TOMBSTONE, EventBatch
from ebbtide.featurestore.events.parse import Parsed, Parser
from ebbtide.featurestore.record.fold import Folder, Points
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.store.cache import Cache, load_through
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit, OutboxEntry
from ebbtide.featurestore.store.protocol import Store
from ebbtide.stream.batch import CommittedOffset, FetchedBatch
from ebbtide.stream.clock import Clock
from ebbtide.stream.outputs.compose import CAUSES, Composer, Serving
from ebbtide.stream.outputs.dead_letter import UNSCORED, FloodGuard
from ebbtide.stream.outputs.message import Message, Sink
from ebbtide.stream.outputs.pre_commit import Outputs, pre_commit_messages, unscored
from ebbtide.stream.policy import Transition, decide
from ebbtide.stream.scoring.batcher import Batcher, Scored
from ebbtide.stream.suppression import Suppression
from ebbtide.stream.telemetry import BatchDone, Stage, Telemetry


@dataclass(frozen=True, slots=True)
class Tools:
    """What all partitions share."""

    topic: str
    outputs: Outputs
    layout: Layout
    folder: Folder
    parser: Parser
    store: Store
    cache: Cache
    sink: Sink
    batcher: Batcher
    serving: Callable[[], Serving]
    clock: Clock
    telemetry: Telemetry


class _Stopwatch:
    """Seconds by stage, one lap after the other."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._last_s = clock, clock.monotonic_s()
        self.seconds: dict[Stage, float] = {}

    def lap(self, stage: Stage) -> None:
        now_s = self._clock.monotonic_s()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now_s - self._last_s
        self._last_s = now_s


class Pipeline:
    """One partition, from the checkpoint it was opened at; `suppressed` says what of it has been sent already."""

    def __init__(
        self,
        tools: Tools,
        partition: int,
        stored: Checkpoint | None,
        start: Checkpoint,
        muted: Suppression,
        flood: FloodGuard,
    ) -> None:
        self._tools, self._partition, self._muted = tools, partition, muted
        self._stored = stored  # what the fence compares with: None when the partition never began
        self._checkpoint = start
        self._acked: list[bytes] = []
        self._flood = flood
        self._composer = Composer(tools.topic, partition, tools.layout, tools.batcher)

    @property
    def position(self) -> int:
        """The offset that the next batch has to start at."""
        return self._checkpoint.offset

    @property
    def has_unacked_outbox(self) -> bool:
        """Alerts that Kafka has, and that the outbox does not know of yet."""
        return bool(self._acked)

    async def verify_fence(self) -> None:
        """Raises Fenced when the partition is not where we left it: moved by another owner, fallen back, or lost.

        For whoever speaks, or waits, without a step, whose own fence comes after we have spoken. A process that was
        stopped for a while would say what it had in hand of somebody whom the other owner has forgotten since, and
        nobody would forget them again.
        """
        stored = await self._tools.store.checkpoint(self._partition)
        if stored != self._stored:
            raise Fenced(f"partition {self._partition} is at {stored}, not at {self._stored}")

    async def send_outbox(self) -> None:
        """Send again what an earlier owner left in the outbox: same ids, same bytes.

        But not what the committed offset says was sent. In an outbox that is older than the committed offset there may
        be an alert of a customer who has been forgotten since, and nobody would forget it a second time.
        """
        outbox = await self._tools.store.outbox(self._partition)
        await self._send_alerts([entry for entry in outbox if entry.offset >= self._muted.outputs_from])
        self._acked = [entry.id for entry in outbox]

    async def ack_outbox(self) -> None:
        """Take acknowledged alerts out of the outbox when no batch comes that could do it on its way."""
        await self._apply(self._step(self._checkpoint.offset, [], self._tools.layout.empty(0), [], []))

    async def process(self, batch: FetchedBatch) -> CommittedOffset:
        """Take the partition over one batch that continues it (and holds no tombstone of a customer it has records
        of: `cut_before_tombstones`). Raises Fenced when another owner has moved the partition."""
        tools, watch = self._tools, _Stopwatch(self._tools.clock)
        parsed = tools.parser.parse(batch.records)
        self._flood.admit(batch.records, [bad.index for bad in parsed.rejected])
        events = parsed.events
        watch.lap("parse")

        # 1. load: hot rows from memory, the others in one round trip
        before, _ = await load_through(
            tools.cache, tools.store, self._partition, self._stored, events.customers
        )
        watch.lap("load")

        # 2. fold, collecting the points at which customers are to be decided
        after, points = tools.folder.fold(before, events)
        watch.lap("fold")

        # 3. score them, in whatever company they travel
        scored = await self._score(points, batch)
        watch.lap("score")

        # 4. decide
        serving = tools.serving()
        transitions = self._not_suppressed(
            decide(points, scored.p, before, after, serving.policy), points, events
        )
        composed = await self._composer.compose(transitions, points, scored, events, serving)
        alerts = [
            OutboxEntry(
                identity,
                self._checkpoint.sequence + 1,
                events.customers[points.customer[t.point]].encode(),
                int(events.position[points.event[t.point]]),
                value,
            )
            for t, (identity, value) in zip(transitions, composed, strict=True)
        ]
        watch.lap("decide")

        # 5. apply, once the dead letters are safe
        if messages := pre_commit_messages(tools.outputs, self._muted, batch, parsed, points, scored):
            await self.verify_fence()
            watch.lap("store")
            await tools.sink.send_all(messages)
            watch.lap("emit")
        await self._store(batch.end, events.customers, after, alerts)
        watch.lap("store")

        # 6. emit the outbox and wait for the acknowledgements
        try:
            await self._send_alerts(alerts)
            self._acked = [entry.id for entry in alerts]
            watch.lap("emit")
        finally:
            # It is applied, so it counts, also when its alerts have to be sent again.
            self._tell(batch, parsed, points, scored, transitions, watch)
        # 7. the caller lets the commit advance to here
        return self.committed

    @property
    def committed(self) -> CommittedOffset:
        """How far this partition is, as Kafka is to remember it."""
        return self._muted.committed_at(self._checkpoint.offset, self._checkpoint.timer_ms)

    @property
    def rebuilding(self) -> tuple[int, int] | None:
        """(position, until) while it makes a state again of which all was sent already; None when it does not."""
        position, until = self._checkpoint.offset, self._muted.alerts_from
        return (position, until) if position < until else None

    async def _score(self, points: Points, batch: FetchedBatch) -> Scored:
        chosen = np.flatnonzero(points.scored)
        p, version = np.zeros(len(points), np.float32), np.zeros(len(points), np.int64)
        if len(chosen):
            scored = await self._tools.batcher.score(
                points.rows[chosen],
                points.as_of[chosen],
                events=len(batch.records),
                oldest_ms=batch.records[0].timestamp,
            )
            p[chosen], version[chosen] = scored.p, scored.version
        return Scored(p, version)

    def _not_suppressed(
        self, transitions: list[Transition], points: Points, events: EventBatch
    ) -> list[Transition]:
        """The transitions to alert about: what was decided below the committed offset has been sent, or was never to
        be."""
        return [t for t in transitions if events.position[points.event[t.point]] >= self._muted.alerts_from]

    async def _store(self, end: int, customers: list[str], after: Rows, alerts: list[OutboxEntry]) -> None:
        known = after["event_time"] != 0
        if known.all():
            kept, forgotten, rows = customers, [], after
        else:
            kept = [customers[i] for i in np.flatnonzero(known)]
            forgotten = [customers[i] for i in np.flatnonzero(~known)]
            rows = after[known]
        await self._apply(self._step(end, kept, rows, forgotten, alerts))

    def _step(
        self,
        end: int,
        customers: list[str],
        rows: Rows,
        forgotten: list[str],
        alerts: list[OutboxEntry],
    ) -> Commit:
        checkpoint = self._checkpoint._replace(offset=end, sequence=self._checkpoint.sequence + 1)
        due: NDArray[np.int64] = self._tools.folder.due(rows)
        return Commit(
            self._partition, self._stored, checkpoint, customers, rows, due, forgotten, alerts, self._acked
        )

    async def _apply(self, commit: Commit) -> None:
        await self._tools.store.apply(commit)
        self._tools.cache.put(commit)
        self._stored = self._checkpoint = commit.checkpoint
        self._acked = []

    async def _send_alerts(self, entries: list[OutboxEntry]) -> None:
        """Send alerts in their order and wait until Kafka has them; a header tells the time of sending."""
        sent_at = [("emitted_at_ms", str(self._tools.clock.now_ms()).encode())]
        topic = self._tools.outputs.alerts
        await self._tools.sink.send_all(
            [Message(topic, entry.key, entry.value, sent_at) for entry in entries]
        )

    def _tell(
        self,
        batch: FetchedBatch,
        parsed: Parsed,
        points: Points,
        scored: Scored,
        transitions: list[Transition],
        watch: _Stopwatch,
    ) -> None:
        rejected = Counter(str(bad.reason) for bad in parsed.rejected)
        if lost := len(unscored(points, scored, parsed.events)):
            rejected[UNSCORED] = lost
        causes = Counter(CAUSES[int(cause)] for cause in points.cause)
        latency_s = (
            (self._tools.clock.now_ms() - batch.records[0].timestamp) / 1000 if batch.records else None
        )
        self._tools.telemetry.batch_done(
            BatchDone(
                partition=self._partition, position=batch.end, records=len(batch.records), events=len(parsed.events),
                rejected=dict(rejected), ignored=parsed.ignored,
                forgotten=int((parsed.events.kind == TOMBSTONE).sum()), points=dict(causes),
                alerts=dict(Counter(t.kind for t in transitions)), customers=len(parsed.events.customers),
                seconds=watch.seconds, latency_s=latency_s,
                lag=None if batch.log_end < 0 else max(batch.log_end - batch.end, 0),
            )
        )  # fmt: skip
