"""The file to read first: what happens in a turn, step by step, to whatever waits in all partitions.

    1 load ─▶ 2 fold ─▶ 3 score ─▶ 4 decide ─▶ 5 apply ─▶ 6 emit ─▶ 7 let the committed offset advance
    └─ judge: changes nothing anywhere ─────┘  └─ commit │        └ the outbox, until Kafka has acknowledged it
                                                one atomic commit a partition, fenced by its checkpoint

A piece of a turn is a part of a log, or customers to whom time brings something: both take the same steps, so a silence
that a timer takes and one that the next event reveals make the same record and the same alert.

A crash before 5 changes nothing; after 5 the next owner finds the outbox and sends it again, the same ids, the same
bytes, in order: exactly once where the sink makes transactions (`stream/kafka/transactions/`). Dead letters, tombstones
and scores are sent and acknowledged before 5, so that what a partition moves past is never lost; after a crash they may
be there twice, with the same position.

What was sent before is not sent again (`stream/decision/suppression.py`): a state that is made a second time, by a
replay of the log, takes every step but speaks only from the group's committed offset on. A row that the model cannot
score loses its decision, not its events: a dead letter `unscored` says so.

The pipeline knows no Faust, Redis or TensorFlow: it is given a store, a batcher and a sink. It keeps nothing between
turns and retries nothing. A partition that fails leaves its turn with its error and holds up nobody (`Work.failed`);
what becomes of it is `stream/partition.py`'s affair. Who takes part in a turn is decided in `stream/schedule.py`.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ebbtide.featurestore.errors import Fenced
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.fold import Folder, Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.cache import Cache
from ebbtide.featurestore.store.commit import Commit, OutboxEntry
from ebbtide.featurestore.store.protocol import Store
from ebbtide.stream.clock import Clock
from ebbtide.stream.decision.policy import Asked
from ebbtide.stream.errors import DeadLetterFlood, PartitionRevoked
from ebbtide.stream.outputs import erasure
from ebbtide.stream.outputs.commits import commits_of
from ebbtide.stream.outputs.compose import Composer
from ebbtide.stream.outputs.message import Delivery, Headers, Message, Parcel
from ebbtide.stream.outputs.pre_commit import Outputs, pre_commit_messages
from ebbtide.stream.outputs.report import records_of, report
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.scoring.model import Scored
from ebbtide.stream.telemetry import Stage, Telemetry, Tracer, TurnTrace
from ebbtide.stream.turn.answers import answers
from ebbtide.stream.turn.load import load
from ebbtide.stream.turn.opened import Opened
from ebbtide.stream.turn.work import Origin, Piece, Verdicts, Work, not_suppressed

log = logging.getLogger(__name__)

MISPLACED = (
    "events lie in another partition than Kafka's default partitioner gives their customer, who is two customers here:"
    " set the producer's partitioner to murmur2 (librdkafka: partitioner=murmur2_random)"
)


@dataclass(frozen=True, slots=True)
class Tools:
    """What all turns share. at_risk_from: the p from which on customers are listed as at risk; None: the policy's
    `exit`. platform: what decides the last bits of a score besides the model."""

    topic: str
    outputs: Outputs
    layout: Layout
    folder: Folder
    parser: Parser
    store: Store
    cache: Cache
    sink: Delivery
    batcher: Batcher
    clock: Clock
    telemetry: Telemetry
    tracer: Tracer | None = None
    at_risk_from: float | None = None
    platform: str = ""


class _Stopwatch:
    """Seconds by stage, one lap after the other; `trace` is told of each."""

    def __init__(self, clock: Clock, trace: TurnTrace | None = None) -> None:
        self._clock, self._last_s = clock, clock.monotonic_s()
        self.trace = trace
        self.seconds: dict[Stage, float] = {}

    def lap(self, stage: Stage) -> None:
        now_s = self._clock.monotonic_s()
        took_s, self._last_s = now_s - self._last_s, now_s
        self.seconds[stage] = self.seconds.get(stage, 0.0) + took_s
        if self.trace is not None:
            self.trace.stage(stage, took_s)


class Pipeline:
    """Turns, for whoever owns partitions: a worker, or a rebuild."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self.misplaced = 0
        """Events so far that lay in another partition than Kafka's default partitioner gives their customer."""
        self._composer = Composer(
            tools.topic, tools.layout, tools.batcher, tools.outputs.audit is not None, tools.platform
        )

    async def turn(self, pieces: Sequence[Piece]) -> dict[int, Exception | None]:
        """Take the pieces' partitions over their batches. By partition: why it left the turn, or None when all of its
        piece was applied and sent, and its committed offset may advance to `Opened.committed`.

        Each piece continues its partition and holds no tombstone of a customer it has records of
        (`FetchedBatch.cut_before_tombstones`); no partition comes twice. Raises what concerns all of them:
        ScorerUnavailable, and whatever nobody foresaw.
        """
        if self._tools.tracer is None:
            return await self._turn(pieces, _Stopwatch(self._tools.clock))
        with self._tools.tracer([piece.batch for piece in pieces if piece.batch is not None]) as trace:
            return await self._turn(pieces, _Stopwatch(self._tools.clock, trace))

    async def _turn(self, pieces: Sequence[Piece], watch: _Stopwatch) -> dict[int, Exception | None]:
        tools = self._tools
        work = Work.of(pieces, tools.parser)
        work.check_places(tools.store.partitions, tools.layout.spec.keys_of)
        watch.lap("parse")
        if tools.layout.spec.customer is not None:
            await self._erase(work)
            watch.lap("store")
        verdicts = await self.judge(work, watch)
        await self.commit(verdicts, watch)
        turn = report(verdicts, watch.seconds, tools.clock.now_ms()) if work.applied else None
        if turn is not None:
            tools.telemetry.turn_done(turn)
        for j, piece in enumerate(pieces):
            if not piece.opened.owned:
                work.failed.setdefault(
                    j, PartitionRevoked(f"partition {piece.opened.partition} was given away")
                )
        outcomes = {piece.opened.partition: work.failed.get(j) for j, piece in enumerate(pieces)}
        if watch.trace is not None:
            watch.trace.done(turn, outcomes)
        return outcomes

    async def _erase(self, work: Work) -> None:
        """Forget the customers of first parts that tombstones name (`outputs/erasure.py`)."""
        tools, left = self._tools, erasure.first_parts(work, self._tools.layout)
        while left := [each for each in left if each.piece in work.alive]:
            found = await answers(tools.store.of_first_each(erasure.requests(work, left)))
            for each, answer in zip(left, found, strict=True):
                if isinstance(answer, Exception):
                    work.failed.setdefault(each.piece, answer)
            asked = [i for i, each in enumerate(left) if each.piece in work.alive]
            taken, left = erasure.pages([left[i] for i in asked], [found[i] for i in asked])
            messages = erasure.nulls(tools.topic, tools.outputs.all, work, taken)
            await self._send(work, await self._fenced(work, messages), with_offset=False)
            commits = {
                j: erasure.commit_of(work, j, page, tools.layout)
                for j, page in taken.items()
                if j in work.alive
            }
            await self._apply(work, commits)
            for j, commit in commits.items():
                if j not in work.failed:
                    work.erased[j] += len(commit.forgotten)
        work.fail(dict(work.failed))  # what has failed so far is folded by nobody

    async def judge(self, work: Work, watch: _Stopwatch) -> Verdicts:
        """Steps 1 to 4. Changes nothing anywhere."""
        tools = self._tools
        work.fail(self._floods(work))

        # 1. load: hot rows from memory, the others in one round trip to each server
        before = await load(work, tools.layout, tools.cache, tools.store)
        watch.lap("load")

        # 2. fold, collecting the points at which customers are to be decided; let time pass for who is due, and for
        #    whose event came behind what timers took already
        known = before["event_time"] != 0
        after, points, counts = tools.folder.fold_counted(before, work.events)
        due = tools.folder.due(after)
        behind = np.flatnonzero((due < work.until) & (after["event_time"] != 0))
        if len(behind):
            after[behind], passed = tools.folder.elapse(after[behind], work.until[behind])
            due[behind] = tools.folder.due(after[behind])
            passed = replace(passed, customer=behind[passed.customer].astype(np.int32))
            points = Points.joined(tools.layout, [points, passed]) if len(points) else passed
        origin = Origin.of(work, points)
        if work.misplaced and not self.misplaced:
            log.warning(
                MISPLACED,
                extra={
                    "events": work.misplaced,
                    "partitions": sorted({p.opened.partition for p in work.pieces}),
                },
            )
        self.misplaced += work.misplaced
        watch.lap("fold")

        # 3. score them, all by one version
        scored = await self._score(work, points)
        watch.lap("score")

        # 4. decide by the policy of that version
        asked = Asked(
            points, scored.p, work.events.customers, Asked.times(points, work.events), origin.piece,
            [piece.opened.checkpoint.budget for piece in work.pieces], tools.store.partitions,
        )  # fmt: skip
        decided = scored.serving.policy.decide(asked, before, after)
        news = not_suppressed(work, decided.transitions, points, origin)
        transitions = [t for t in news if not t.held]
        held = [t for t in news if t.held]
        composed = await self._composer.compose(work, transitions, points, origin, scored)
        watch.lap("decide")
        return Verdicts(
            work, known, after, due, points, counts, origin, scored, transitions, composed.alerts, decided.spent,
            held, composed.audits,
        )  # fmt: skip

    async def commit(self, verdicts: Verdicts, watch: _Stopwatch) -> None:
        """Steps 5 to 7: `work.failed` says of which pieces they did not succeed."""
        work, tools = verdicts.work, self._tools

        # 5. apply, once dead letters, tombstones and scores are safe
        if messages := pre_commit_messages(tools.topic, tools.outputs, verdicts):
            messages = await self._fenced(work, messages)
            watch.lap("store")
            await self._send(work, messages, with_offset=False)
            watch.lap("emit")
        commits = commits_of(verdicts, tools.at_risk_from, tools.clock.now_ms())
        await self._apply(work, commits)
        work.applied |= commits.keys() - work.failed.keys()
        watch.lap("store")

        # 6. emit the outbox, with how far that is, and wait for the acknowledgements
        alerts = {j: entries for j in work.alive if (entries := verdicts.alerts.get(j))}
        traced = {} if watch.trace is None else _traced(watch.trace, verdicts, alerts)
        messages = {j: self.alert_messages(entries, traced.get(j)) for j, entries in alerts.items()}
        await self._send(work, messages, with_offset=True)
        for j, entries in alerts.items():
            if j not in work.failed:
                work.pieces[j].opened.acked = [entry.id for entry in entries]
        watch.lap("emit")
        # 7. the owners let their committed offsets advance

    async def _apply(self, work: Work, commits: dict[int, Commit]) -> None:
        """By piece; `work.failed` says of which they did not succeed."""
        tools = self._tools
        applied = await answers(tools.store.apply_each(list(commits.values())))
        work.failed |= {j: error for j, error in zip(commits, applied, strict=True) if error is not None}
        for j, commit in commits.items():
            if j not in work.failed:
                opened = work.pieces[j].opened
                opened.due.arm(commit.due)
                opened.advance(commit)
                if opened.owned:
                    tools.cache.put(commit)

    async def send_outbox(self, opened: Opened) -> None:
        """Send again what an earlier owner left in the outbox: same ids, same bytes, in the order of decision.

        But not what the committed offset says was sent. In an outbox that is older there may be an alert of a customer
        who has been forgotten since, and nobody would forget it a second time.
        """
        outbox = await self._tools.store.outbox(opened.partition)
        if opened.stored is not None:
            # Unless the outbox was lost after the checkpoint was read, and what is empty, or older, is another one: its
            # alerts would count as sent.
            for error in (await self.verify_fence([opened])).values():
                raise error
        sent = opened.suppression.sequence
        messages = self.alert_messages([entry for entry in outbox if entry.sequence > sent])
        if messages:
            for refused in await self._tools.sink.send_each(
                [Parcel(opened.partition, messages, opened.committed)]
            ):
                if refused is not None:
                    raise refused
        opened.acked = [entry.id for entry in outbox]

    async def verify_fence(self, opened: Sequence[Opened]) -> dict[int, Exception]:
        """By index: Fenced for a partition that is not where we left it (moved by another owner, fallen back, lost), or
        why that could not be asked.

        For whoever speaks, or waits, without a commit, whose own fence comes after we have spoken. A process that was
        stopped for a while would say what it had in hand of somebody whom the other owner has forgotten since, and
        nobody would forget them again.
        """
        expected = [each.stored for each in opened]
        asked = self._tools.store.checkpoint_each([each.partition for each in opened])
        wrong: dict[int, Exception] = {}
        for i, (each, stored, found) in enumerate(zip(opened, expected, await answers(asked), strict=True)):
            if isinstance(found, Exception):
                wrong[i] = found
            elif found != stored:
                wrong[i] = Fenced(f"partition {each.partition} is at {found}, not at {stored}")
        return wrong

    def alert_messages(
        self, entries: Sequence[OutboxEntry], traced: Sequence[Headers] | None = None
    ) -> list[Message]:
        """Outbox entries as messages; a header tells the time of sending, `traced` the trace that each is of."""
        sent_at = ("emitted_at_ms", str(self._tools.clock.now_ms()).encode())
        topic = self._tools.outputs.alerts
        if traced is None:
            return [Message(topic, entry.key, entry.value, [sent_at]) for entry in entries]
        return [
            Message(topic, entry.key, entry.value, [sent_at, *headers])
            for entry, headers in zip(entries, traced, strict=True)
        ]

    def _floods(self, work: Work) -> dict[int, Exception]:
        """The pieces of partitions of which most is bad."""
        flooded: dict[int, Exception] = {}
        bad: dict[int, list[int]] = {}
        for rejected, j in zip(work.parsed.rejected, work.rejected, strict=True):
            bad.setdefault(j, []).append(rejected.index - int(work.first[j]))
        for j, piece in enumerate(work.pieces):
            if piece.batch is not None and piece.batch.records:
                try:
                    piece.opened.flood.admit(piece.batch.records, bad.get(j, []))
                except DeadLetterFlood as error:
                    flooded[j] = error
        return flooded

    async def _score(self, work: Work, points: Points) -> Scored:
        chosen = np.flatnonzero(points.scored)
        every = len(chosen) == len(points)
        oldest_ms = min(
            (p.batch.records[0].timestamp for p in work.pieces if p.batch and p.batch.records), default=0
        )
        rows = (
            points.rows
            if every
            else points.rows.view(f"V{points.rows.itemsize}")[chosen].view(points.rows.dtype)
        )
        scored = await self._tools.batcher.score(
            rows,
            points.as_of if every else points.as_of[chosen],
            events=len(work.events),
            oldest_ms=oldest_ms,
        )
        if every:
            return scored
        p = np.zeros((len(points), *scored.p.shape[1:]), np.float32)
        p[chosen] = scored.p
        return Scored(p, scored.serving)

    async def _fenced(self, work: Work, messages: dict[int, list[Message]]) -> dict[int, list[Message]]:
        """The messages of partitions that are still ours."""
        asked = [j for j in work.alive if j in messages]
        wrong = await self.verify_fence([work.pieces[j].opened for j in asked])
        work.failed |= {asked[i]: error for i, error in wrong.items()}
        return {j: messages[j] for j in work.alive if j in messages}

    async def _send(self, work: Work, messages: dict[int, list[Message]], *, with_offset: bool) -> None:
        """Send and wait until Kafka has them; the pieces that had something to say leave when that is not known."""
        if not messages:
            return
        opened = {j: work.pieces[j].opened for j in messages}
        parcels = [
            Parcel(opened[j].partition, each, opened[j].committed if with_offset else None)
            for j, each in messages.items()
        ]
        outcomes = await self._tools.sink.send_each(parcels)
        work.failed |= {j: error for j, error in zip(messages, outcomes, strict=True) if error is not None}


def _traced(trace: TurnTrace, verdicts: Verdicts, alerts: Iterable[int]) -> dict[int, list[Headers]]:
    """By piece of `alerts`, the headers of each of its alerts, in the order of decision."""
    found: dict[int, list[Headers]] = {j: [] for j in alerts}
    for t, record in zip(verdicts.transitions, records_of(verdicts), strict=True):
        if (j := int(verdicts.origin.piece[t.point])) in found:
            found[j].append(trace.alert(record))
    return found
