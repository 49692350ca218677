"""The work of one turn: pieces of partitions, parsed and numbered together, and what was decided of them.

    pieces ─▶ Work(events, customers, bounds) ─judge─▶ Verdicts(after, points, origin, scored, alerts) ─commit─▶

Columns hold all partitions, one after the other: events and customers of piece j lie side by side, so one parse, one
fold, one dispatch and one decision serve them all, and a slice gives each partition its own again. A piece is of events
or of customers who are due; to whom time brings something is the same fold's affair.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.contract import Reason, Rejected
from ebbtide.featurestore.events.event import TOMBSTONE, EventBatch
from ebbtide.featurestore.events.parse import Parsed, Parser
from ebbtide.featurestore.hashing import misplaced
from ebbtide.featurestore.record.fold import FoldCounts, Points
from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.checkpoint import TimerCursor
from ebbtide.featurestore.store.commit import OutboxEntry
from ebbtide.stream.batch import FetchedBatch, Record
from ebbtide.stream.decision.budget import Spent
from ebbtide.stream.decision.policy import Transition
from ebbtide.stream.scoring.model import Scored
from ebbtide.stream.turn.due import Due, elapsed_until
from ebbtide.stream.turn.opened import Opened

MISPLACED_DETAIL = (
    "its customer belongs to another partition by Kafka's default partitioner, and has a history there"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One partition's share in a turn: a batch, or customers who are due; of neither, there is only what was
    acknowledged to take out of the outbox.

    It lies on one side of each of the partition's limits of suppression (`Opened.suppression`), so that it speaks as a
    whole, or does not.
    """

    opened: Opened
    batch: FetchedBatch | None
    due: Due | None = None

    @property
    def customers_due(self) -> int:
        """How many customers of it are due."""
        return 0 if self.due is None else len(self.due.customers)

    @property
    def end(self) -> int:
        """The offset that the partition is at afterwards."""
        return self.opened.checkpoint.offset if self.batch is None else self.batch.end

    @property
    def timers(self) -> TimerCursor:
        """How far the partition's timers are taken afterwards."""
        return self.opened.checkpoint.timers if self.due is None else self.due.position

    @property
    def sends_outputs(self) -> bool:
        """Its dead letters, tombstones and scores are news."""
        return self._above(self.opened.suppression.outputs_from)

    @property
    def sends_alerts(self) -> bool:
        """Its alerts are news."""
        return self._above(self.opened.suppression.alerts_from)

    def _above(self, offset: int) -> bool:
        if self.due is not None and self.due.position <= self.opened.suppression.timers_from:
            return False
        return (self.end if self.batch is None else self.batch.start) >= offset


@dataclass(frozen=True, slots=True)
class Origin:
    """Where each of m points came from: a value, so that a timer's point has one as well as an event's.

    piece: int32[m], index into the work's pieces. offset: int64[m], where in the topic lies what the point is of: its
    event; of what time brings about, the last activity, -1 when that came from a file. So a silence that a timer takes
    and one that the next event reveals are of the same place.
    """

    piece: NDArray[np.int32]
    offset: NDArray[np.int64]

    @classmethod
    def of(cls, work: "Work", points: Points) -> "Origin":
        """Of points of the work's customers."""
        piece = np.searchsorted(work.bounds, points.customer, side="right") - 1
        offset = np.where(points.of_time, points.rows["last_seen_offset"], -1)
        revealed = ~points.of_time
        offset[revealed] = work.events.position[points.event[revealed]]
        return cls(piece.astype(np.int32), offset)


@dataclass(slots=True, eq=False)
class Work:
    """k pieces with n events of m customers, some of whom are due and have no event.

    records: of all pieces, one after the other. events: in that order; a customer whom two partitions name is two
    customers. until: int64[m], ms UTC, before when what time brings each of them is to be taken. number: int64[n], the
    record of each event. piece: int32[n], the piece of each event. rejected: the piece of each rejected record. first:
    int64[k + 1], piece j has the records [first[j], first[j + 1]). bounds: int64[k + 1], and the customers [bounds[j],
    bounds[j + 1]). misplaced: events that lie in another partition than theirs. erased: by piece, how many customers a
    tombstone of their first part has forgotten (`outputs/erasure.py`). failed: why a piece has left the turn; its
    events are no longer among `events`. applied: the pieces that were committed.
    """

    pieces: Sequence[Piece]
    records: list[Record]
    parsed: Parsed
    events: EventBatch
    number: NDArray[np.int64]
    piece: NDArray[np.int32]
    rejected: list[int]
    first: NDArray[np.int64]
    bounds: NDArray[np.int64]
    until: NDArray[np.int64]
    misplaced: int = 0
    erased: Counter[int] = field(default_factory=Counter)
    failed: dict[int, Exception] = field(default_factory=dict)
    applied: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, pieces: Sequence[Piece], parser: Parser) -> "Work":
        """Parse the records of all pieces in one call."""
        records: list[Record] = []
        first = [0]
        for piece in pieces:
            if piece.batch is not None:
                records += piece.batch.records
            first.append(len(records))
        parsed = parser.parse(records)
        events, number, starts = parsed.events, parsed.number, np.array(first, np.int64)
        k, m = len(pieces), len(events.customers)
        if k == 1:
            work = cls(
                pieces, records, parsed, events, number, np.zeros(len(events), np.int32),
                [0] * len(parsed.rejected), starts,
                np.array([0, m], np.int64), np.zeros(m, np.int64),
            )  # fmt: skip
            work._add_due()
            return work
        of = (np.searchsorted(starts, number, side="right") - 1).astype(np.int32)
        bad = [each.index for each in parsed.rejected]
        rejected = (np.searchsorted(starts, bad, side="right") - 1).tolist() if bad else []
        names = events.customers
        known, customer = np.unique(of.astype(np.int64) * m + events.customer, return_inverse=True)
        events = replace(
            events,
            customers=[names[i] for i in (known % max(m, 1)).tolist()],
            customer=customer.astype(np.int32),
        )
        bounds = np.searchsorted(known, np.arange(k + 1) * m)
        none = np.zeros(len(events.customers), np.int64)
        work = cls(pieces, records, parsed, events, number, of, rejected, starts, bounds, none)
        work._add_due()
        return work

    def _add_due(self) -> None:
        """Number the customers who are due among the others, and say up to when time passes for everyone."""
        if any(piece.due is not None for piece in self.pieces):
            names, events, bounds = self.events.customers, self.events, self.bounds.tolist()
            of_piece = [
                names[bounds[j] : bounds[j + 1]] if piece.due is None else piece.due.customers
                for j, piece in enumerate(self.pieces)
            ]
            moved = np.cumsum([0, *map(len, of_piece)])
            self.events = replace(
                events,
                customers=[name for each in of_piece for name in each],
                customer=(events.customer + (moved - self.bounds)[self.piece]).astype(np.int32),
            )
            self.bounds = moved
        self.until = np.zeros(len(self.events.customers), np.int64)
        for j, piece in enumerate(self.pieces):
            part = slice(int(self.bounds[j]), int(self.bounds[j + 1]))
            self.until[part] = elapsed_until(self.events.customers[part], piece.timers)

    @property
    def alive(self) -> list[int]:
        """The pieces that are still in the turn."""
        return [j for j, piece in enumerate(self.pieces) if j not in self.failed and piece.opened.owned]

    def check_places(self, partitions: int, keys_of: Callable[[Sequence[str]], list[bytes]]) -> None:
        """Count the events that lie in another of the topic's `partitions` than Kafka's default partitioner gives their
        customer by the key (`Spec.keys_of`): of a producer with another one (librdkafka's own default), whose customers
        are two people here.

        Where a backfill placed the customers by that partitioner, such an event would begin somebody without their
        history: it is a dead letter, which a replay sends to where it belongs."""
        customers = self.events.customers
        if not len(self.events):
            return
        theirs = np.repeat([piece.opened.partition for piece in self.pieces], np.diff(self.bounds))
        of_customer = misplaced(keys_of(customers), theirs, partitions)
        if not of_customer.any():
            return
        # A tombstone is sent to whichever partitions hold its customer.
        wrong = of_customer[self.events.customer] & (self.events.kind != TOMBSTONE)
        self.misplaced = int(wrong.sum())
        backfilled = np.array([piece.opened.checkpoint.history is not None for piece in self.pieces])
        refused = wrong & backfilled[self.piece]
        if refused.any():
            self.parsed.rejected.extend(
                Rejected(index, Reason.MISPLACED, MISPLACED_DETAIL) for index in self.number[refused].tolist()
            )
            self.rejected.extend(self.piece[refused].tolist())
            self._keep(~refused)

    def fail(self, errors: dict[int, Exception]) -> None:
        """Let pieces leave: their events are folded by nobody."""
        if not errors:
            return
        self.failed |= errors
        self._keep(~np.isin(self.piece, list(errors)))

    def _keep(self, keep: NDArray[np.bool_]) -> None:
        """These of the events: bool[n]."""
        self.events = self.events.take(keep)
        self.number, self.piece = self.number[keep], self.piece[keep]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What was decided of a turn's work; nothing of it has been applied or sent.

    known: bool[m], of whom there was a record before. after: records[m], as folded and decided. due: int64[m], when
    each is due next. counts: events that are late or twice. transitions: those to alert about. alerts: by piece, the
    outbox entries in the order of decision. spent: by piece, what of the budget is used. held: transitions that
    would be alerts, were it not for the budget or the holdout. audits: by piece, what the alerts were decided on,
    as keys and values of the audit topic's records.
    """

    work: Work
    known: NDArray[np.bool_]
    after: Rows
    due: NDArray[np.int64]
    points: Points
    counts: FoldCounts
    origin: Origin
    scored: Scored
    transitions: list[Transition]
    alerts: dict[int, list[OutboxEntry]]
    spent: list[Spent]
    held: list[Transition]
    audits: dict[int, list[tuple[bytes, bytes]]]


def not_suppressed(
    work: Work, transitions: list[Transition], points: Points, origin: Origin
) -> list[Transition]:
    """The transitions to alert about: not what was sent already, nor what was never to be."""
    speaks = [piece.sends_alerts for piece in work.pieces]
    since_ms = [piece.opened.suppression.silences_from_ms for piece in work.pieces]
    of_time = points.of_time
    return [
        t
        for t in transitions
        if speaks[j := origin.piece[t.point]]
        and not (of_time[t.point] and points.as_of[t.point] <= since_ms[j])
    ]
