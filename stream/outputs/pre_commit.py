"""What a turn says ahead of its commits: dead letters, tombstones passed on, scores, rows for the audit.

    sent and acknowledged before a partition moves past the records they come from, so nothing is lost by being bad
    alerts go the other way, through the outbox (`stream/pipeline.py`): they follow from the commit

It leaves out what the group's committed offset says was sent (`stream/decision/suppression.py`). It sends nothing. The
invariant: the messages follow from the log and the committed offset alone, so after a crash the same ones are made
again, with the same positions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.record.fold import CAUSES, EXPIRED
from ebbtide.stream.outputs.dead_letter import (
    BYTES_MAX,
    UNSCORED,
    Position,
    dead_letter_of,
    propagated_tombstone,
)
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.outputs.scores import score_message
from ebbtide.stream.turn.work import Verdicts

UNSCORED_DETAIL = "the model fails for this customer's record; the event is folded"


@dataclass(frozen=True, slots=True)
class Outputs:
    """Topic names. `scores`, `audit` None: not written. `dead_letter_bytes_max`: what the dead-letter topic takes.
    `targets`: the spec's, by name, as scores call them. `composite`: customers are."""

    alerts: str
    dead_letters: str
    scores: str | None = None
    audit: str | None = None
    dead_letter_bytes_max: int = BYTES_MAX
    targets: tuple[str, ...] = ()
    composite: bool = False

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(name for name in (self.alerts, self.dead_letters, self.scores, self.audit) if name)


def unscored(verdicts: Verdicts) -> NDArray[np.int64]:
    """Indices int64[k], ascending, of the events that brought a point which the model cannot score; a timer's point has
    no event to be a letter of."""
    event = verdicts.points.event
    return np.unique(event[np.isnan(verdicts.scored.primary) & (event >= 0)]).astype(np.int64)


def pre_commit_messages(topic: str, outputs: Outputs, verdicts: Verdicts) -> dict[int, list[Message]]:
    """By piece: what has to be acknowledged before its partition moves past it."""
    work = verdicts.work
    speaks = np.zeros(len(work.pieces), np.bool_)
    speaks[[j for j in work.alive if work.pieces[j].sends_outputs]] = True
    messages: dict[int, list[Message]] = {}

    def source(piece: int, offset: int) -> Position:
        return Position(topic, work.pieces[piece].opened.partition, offset)

    # First, since a batch is cut before a tombstone whose customer it knows: what else it says of them came after.
    events = work.events
    for e in np.flatnonzero(events.kind == TOMBSTONE).tolist():
        j, offset = int(work.piece[e]), int(events.position[e])
        if speaks[j]:
            key = events.customers[events.customer[e]].encode()
            messages.setdefault(j, []).extend(
                propagated_tombstone(key, source(j, offset), topic=each) for each in outputs.all
            )
    bad = [
        (j, each.index, str(each.reason), each.detail)
        for j, each in zip(work.rejected, work.parsed.rejected, strict=True)
    ]
    bad += [
        (int(work.piece[e]), int(work.number[e]), UNSCORED, UNSCORED_DETAIL)
        for e in unscored(verdicts).tolist()
    ]
    for j, index, reason, detail in bad:
        record = work.records[index]
        if speaks[j]:
            messages.setdefault(j, []).append(
                dead_letter_of(
                    record,
                    source(j, record.offset),
                    reason,
                    detail,
                    topic=outputs.dead_letters,
                    bytes_max=outputs.dead_letter_bytes_max,
                )
            )
    if outputs.audit is not None:
        for j in work.alive:
            for key, value in verdicts.audits.get(j, []):
                messages.setdefault(j, []).append(Message(outputs.audit, key, value))
    if outputs.scores is not None:
        _scores(outputs.scores, outputs, verdicts, speaks, messages)
    return messages


def _scores(
    topic: str,
    outputs: Outputs,
    verdicts: Verdicts,
    speaks: NDArray[np.bool_],
    messages: dict[int, list[Message]],
) -> None:
    work, points, origin, scored = verdicts.work, verdicts.points, verdicts.origin, verdicts.scored
    said = points.scored & ~np.isnan(scored.primary) & speaks[origin.piece]
    # A tombstone of a first part reaches whom the store still knows: the score of one who expired goes with the record.
    ended = (points.cause == EXPIRED) & speaks[origin.piece] & outputs.composite
    policy, names = scored.serving.policy, outputs.targets
    for m in np.flatnonzero(said | ended).tolist():
        j, customer = int(origin.piece[m]), work.events.customers[points.customer[m]]
        if ended[m]:
            messages.setdefault(j, []).append(Message(topic, customer.encode(), None))
            continue
        messages.setdefault(j, []).append(
            score_message(
                topic, customer, int(points.as_of[m]), CAUSES[int(points.cause[m])],
                scored.of(m, 0), scored.serving.version, work.pieces[j].opened.partition, int(origin.offset[m]),
                held_out=policy.holds_out(customer),
                targets={name: float(scored.of(m, t)) for t, name in enumerate(names)} if len(names) > 1 else None,
            )
        )  # fmt: skip
