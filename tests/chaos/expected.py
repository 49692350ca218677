"""What should be there: the final log through parse, fold, score and decide, offline, in offset order, once.

    log (read_committed) ─▶ cut at tombstones ─▶ parse ─▶ fold ─▶ score ─▶ decide ─▶ records, alerts, dead letters

It shares with the workers the pure steps and the model's files, and nothing of what this suite puts to the test: no
transport, no Redis, no outbox, no batches of theirs, no resuming. The parser it shares, too, so whether that is right
about what is poison is for the producers to say (`verdict.py`). Invariant: the end depends on the log alone.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.events.parse import ParseLimits, Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.model.serving.runtime import configure
from ebbtide.model.serving.scorer import Scorer
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.worker.run import Serving, serving
from ebbtide.stream.batch import FetchedBatch, Record
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.outputs.compose import Composer
from ebbtide.stream.policy import decide
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.scoring.model import Scored
from ebbtide.stream.telemetry import Telemetry
from ebbtide.stream.turn.work import Origin, Piece, Work
from tests.chaos.feed import checksum
from tests.support.seams.turns import from_the_beginning

CHUNK = 1_000
VERSION = re.compile(rb'"model_version":\d+')


def same_version(alert: bytes) -> bytes:
    """An alert's bytes without its model's version: swaps come when they come."""
    return VERSION.sub(b'"model_version":0', alert)


@dataclass
class Expected:
    """records: (partition, customer) -> bytes; due: the same -> ms; alerts: id -> bytes without the model's version;
    dead letters: (partition, offset) -> reason and checksum; tombstones: customer -> how often forgotten; sums: offset
    -> checksum of each record by partition; memories: the log's time in pieces as long as the spec's memory, those of
    them in which a record came."""

    records: dict[tuple[int, str], bytes] = field(default_factory=dict)
    due: dict[tuple[int, str], int] = field(default_factory=dict)
    alerts: dict[bytes, bytes] = field(default_factory=dict)
    letters: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    tombstones: Counter[bytes] = field(default_factory=Counter)
    sums: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    memories: set[int] = field(default_factory=set)

    @property
    def log_records(self) -> int:
        return sum(map(len, self.sums.values()))


class Replay:
    """Reads a topic from end to end. `settings` are the workers', but for the way to Kafka."""

    def __init__(self, settings: Settings) -> None:
        configure()
        self._settings = settings
        self._layout = Layout(load_spec(settings.spec))
        self._folder = Folder(self._layout)
        self._parser = Parser(self._layout.spec, ParseLimits(value_bytes_max=settings.record_bytes_max))
        self._scorer = Scorer.load(settings.model, self._layout)
        self._serving: Serving = serving(self._scorer, settings.policy)
        self._batcher = Batcher(
            lambda: self._serving, SystemClock(), Telemetry(), deadline_s=1.0, linger_s=0.0
        )
        self._rows: dict[int, dict[str, np.void]] = defaultdict(dict)
        self.end = Expected()

    async def run(self) -> Expected:
        topic = self._settings.kafka.topic
        waiting: dict[int, list[Record]] = defaultdict(list)
        async for record in read_topic(self._settings.kafka, topic):
            mine = waiting[record.partition]
            mine.append(record)
            if len(mine) == CHUNK:
                await self._take(record.partition, waiting.pop(record.partition))
        for partition, records in waiting.items():
            await self._take(partition, records)
        for partition, rows in self._rows.items():
            for customer, row in rows.items():
                self.end.records[partition, customer] = row.tobytes()
                due = self._folder.due(np.array([row], self._layout.dtype))
                self.end.due[partition, customer] = int(due[0])
        return self.end

    async def _take(self, partition: int, records: list[Record]) -> None:
        sums = self.end.sums[partition]
        for record in records:
            sums[record.offset] = checksum(record.key, record.value)
        self.end.memories |= {record.timestamp // self._layout.spec.memory_ms for record in records}
        start, end = records[0].offset, records[-1].offset + 1
        whole = FetchedBatch(self._settings.kafka.topic, partition, 0, start, end, records)
        pieces = list(whole.cut_before_tombstones())
        assert [record for piece in pieces for record in piece.records] == records, "a cut lost a record"
        for piece, follows in pairwise(pieces):
            assert piece.end == follows.start, "a cut left a gap"
        assert (pieces[0].start, pieces[-1].end) == (start, end), "a cut moved an end"
        for piece in pieces:
            await self._fold(partition, list(piece.records))

    async def _fold(self, partition: int, records: list[Record]) -> None:
        topic = self._settings.kafka.topic
        opened = from_the_beginning(self._layout.id, partition, 1)
        batch = FetchedBatch(topic, partition, 0, records[0].offset, records[-1].offset + 1, records)
        work = Work.of([Piece(opened, batch)], self._parser)
        parsed = work.parsed
        for bad in parsed.rejected:
            record = records[bad.index]
            said = (str(bad.reason), checksum(record.key, record.value))
            self.end.letters[partition, record.offset] = said
        events, rows = parsed.events, self._rows[partition]
        before = self._layout.empty(len(events.customers))
        for i, customer in enumerate(events.customers):
            if customer in rows:
                before[i] = rows[customer]
        after, points = self._folder.fold(before, events)
        p = np.zeros(len(points), np.float32)
        chosen: NDArray[np.intp] = np.flatnonzero(points.scored)
        if len(chosen):
            p[chosen] = self._scorer.score(points.rows[chosen], points.as_of[chosen])
        transitions = decide(points, p, before, after, self._serving.policy)
        composer = Composer(self._settings.kafka.topic, self._layout, self._batcher)
        origin = Origin(work.piece[points.event], events.position[points.event])
        scored = Scored(p, self._serving)
        for entry in (await composer.compose(work, transitions, points, origin, scored)).get(0, []):
            assert entry.id not in self.end.alerts, "two alerts of one id in a single replay"
            self.end.alerts[entry.id] = same_version(entry.value)
        for e in np.flatnonzero(events.kind == TOMBSTONE):
            self.end.tombstones[events.customers[events.customer[e]].encode()] += 1
        for i, customer in enumerate(events.customers):
            if after["event_time"][i] != 0:
                rows[customer] = after[i].copy()
            else:
                rows.pop(customer, None)
