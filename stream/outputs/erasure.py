"""The customers of a first part, forgotten by one tombstone: what a turn of composite customers does before it loads.

    tombstone of ann ─▶ the store: who begins with ann/? ─▶ their nulls, acknowledged ─▶ commits that forget them

A tombstone names a first part only; who begins with it, the store knows (`Store.of_first_each`). They are forgotten by
commits of their own, which leave the partition where it is: there may be more of them than one commit holds. Nothing
is lost by an end in between: the tombstone is still ahead, and whoever comes to it finds the others. It may be done
before the turn, since a batch is cut before a tombstone of somebody whom it has records of; whoever comes back behind
it in the same batch begins anew.

This module says what there is to do; asking, sending and applying are the pipeline's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX, Commit, FirstRequest
from ebbtide.stream.outputs.dead_letter import Position, propagated_tombstone
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.turn.work import Work


class FirstPart(NamedTuple):
    """A tombstone of a first part: the piece it is in, its name and its offset."""

    piece: int
    name: str
    offset: int


@dataclass(slots=True)
class Page:
    """Customers of one piece to forget now, and the offset of each one's tombstone."""

    customers: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)


def first_parts(work: Work, layout: Layout) -> list[FirstPart]:
    """The tombstones of first parts, in order."""
    events, spec = work.events, layout.spec
    return [
        FirstPart(int(work.piece[e]), name, int(events.position[e]))
        for e in np.flatnonzero(events.kind == TOMBSTONE).tolist()
        if spec.names_first(name := events.customers[events.customer[e]])
    ]


def requests(work: Work, left: Sequence[FirstPart]) -> list[FirstRequest]:
    """What to ask the store for."""
    return [(work.pieces[each.piece].opened.partition, each.name, CUSTOMERS_MAX) for each in left]


def pages(
    left: Sequence[FirstPart], found: Sequence[Sequence[str]]
) -> tuple[dict[int, Page], list[FirstPart]]:
    """By piece whom one commit forgets, of the customers `found` of each; and the first parts that may have more."""
    taken: dict[int, Page] = {}
    more: list[FirstPart] = []
    for each, customers in zip(left, found, strict=True):
        page = taken.setdefault(each.piece, Page())
        room = CUSTOMERS_MAX - len(page.customers)
        page.customers += customers[:room]
        page.offsets += [each.offset] * min(room, len(customers))
        if len(customers) > room or len(customers) == CUSTOMERS_MAX:
            more.append(each)
    return {piece: page for piece, page in taken.items() if page.customers}, more


def nulls(topic: str, to: Sequence[str], work: Work, taken: dict[int, Page]) -> dict[int, list[Message]]:
    """By piece the tombstones to pass on to the topics `to`, of pieces that speak."""
    return {
        piece: [
            propagated_tombstone(
                name.encode(), Position(topic, work.pieces[piece].opened.partition, offset), topic=each
            )
            for name, offset in zip(page.customers, page.offsets, strict=True)
            for each in to
        ]
        for piece, page in taken.items() if work.pieces[piece].sends_outputs
    }  # fmt: skip


def commit_of(work: Work, piece: int, page: Page, layout: Layout) -> Commit:
    """Forgets a page; the partition stays where it is."""
    opened = work.pieces[piece].opened
    checkpoint = opened.checkpoint._replace(sequence=opened.checkpoint.sequence + 1)
    return Commit(
        opened.partition, opened.stored, checkpoint, [], layout.empty(0), np.empty(0, np.int64), page.customers,
        acked=opened.acked,
    )  # fmt: skip
