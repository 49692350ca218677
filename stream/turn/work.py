"""The work of one turn: pieces of partitions, parsed and numbered together, and what was decided of them.

    pieces ─▶ Work(events, customers, bounds) ─judge─▶ Verdicts(after, points, origin, scored, alerts) ─commit─▶

Columns hold all partitions, one after the other: events, customers and points of piece j lie side by side, so one
parse, one fold, one dispatch and one decision serve them all, and a slice gives each partition its own again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.contract import Reason, Rejected
from ebbtide.featurestore.events.event import TOMBSTONE, EventBatch
from ebbtide.featurestore.events.parse import Parsed, Parser
from ebbtide.featurestore.hashing import misplaced
from ebbtide.featurestore.record.fold import FoldCounts, Points
from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.commit import OutboxEntry
from ebbtide.stream.batch import FetchedBatch, Record
from ebbtide.stream.policy import Transition
from ebbtide.stream.scoring.model import Scored
from ebbtide.stream.turn.opened import Opened

MISPLACED_DETAIL = (
    "its customer belongs to another partition by Kafka's default partitioner, and has a history there"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One partition's share in a turn. `batch` None: nothing to fold, only acknowledged alerts to take out of the
    outbox."""

    opened: Opened
    batch: FetchedBatch | None

    @property
    def end(self) -> int:
        """The offset that the partition is at afterwards."""
        return self.opened.checkpoint.offset if self.batch is None else self.batch.end


@dataclass(frozen=True, slots=True)
class Origin:
    """Where each of m points came from: a value, so that a timer's point has one as well as an event's.

    piece: int32[m], index into the work's pieces. offset: int64[m], the position that the point is decided at.
    """

    piece: NDArray[np.int32]
    offset: NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Work:
    """k pieces with n events of m customers.

    records: of all pieces, one after the other. events: in that order; a customer whom two partitions name is two
    customers. number: int64[n], the record of each event. piece: int32[n], the piece of each event. rejected: the
    piece of each rejected record. first: int64[k + 1], piece j has the records [first[j], first[j + 1]). bounds:
    int64[k + 1], and the customers [bounds[j], bounds[j + 1]). misplaced: events that lie in another partition than
    theirs. failed: why a piece has left the turn; its events are no longer among `events`. applied: the pieces that
    were committed.
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
    misplaced: int = 0
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
            return cls(
                pieces, records, parsed, events, number, np.zeros(len(events), np.int32),
                [0] * len(parsed.rejected), starts,
                np.array([0, m], np.int64),
            )  # fmt: skip
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
        return cls(pieces, records, parsed, events, number, of, rejected, starts, bounds)

    @property
    def alive(self) -> list[int]:
        """The pieces that are still in the turn."""
        return [j for j, piece in enumerate(self.pieces) if j not in self.failed and piece.opened.owned]

    def check_places(self, partitions: int) -> None:
        """Count the events that lie in another of the topic's `partitions` than Kafka's default partitioner gives their
        customer: of a producer with another one (librdkafka's own default), whose customers are two people here.

        Where a backfill placed the customers by that partitioner, such an event would begin somebody without their
        history: it is a dead letter, which a replay sends to where it belongs."""
        customers = self.events.customers
        if not customers:
            return
        theirs = np.repeat([piece.opened.partition for piece in self.pieces], np.diff(self.bounds))
        of_customer = misplaced([customer.encode() for customer in customers], theirs, partitions)
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

    known: bool[m], of whom there was a record before. after: records[m], as folded and decided. counts: events that are
    late or twice. transitions: those to alert
    about. alerts: by piece, the outbox entries in the order of decision.
    """

    work: Work
    known: NDArray[np.bool_]
    after: Rows
    points: Points
    counts: FoldCounts
    origin: Origin
    scored: Scored
    transitions: list[Transition]
    alerts: dict[int, list[OutboxEntry]]
