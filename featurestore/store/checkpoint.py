"""Where a partition is: its checkpoint, which is also the fencing token of every commit.

Whoever commits says which checkpoint it last saw. When that is no longer the stored one, somebody else has moved the
partition: `Fenced`, and nothing is written.

It is stored as one line of `key=value` pairs, which an operator can read with `GET`:

    offset=1200 sequence=37 timer_ms=0 layout=fold:…/policy:… partitions=4 topic_id=… leader_epoch=3 nonce=…

The fence compares this line, so there is one way to write a checkpoint: the first five pairs always, every other one
only when it is not its default, in the order of the fields, and keys of a later release behind them, as they were read.
A later release therefore adds its keys at the end, and an older one that serves beside it keeps them.
"""

import re
import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.record.layout import fold_of

REBUILD = "make the state again from the topic: `ebbtide rebuild --prefix NEW`, then set redis.prefix to it"
RESETTING = "resetting"  # stands in the place of a checkpoint while a reset deletes what is behind it
BACKFILLING = "backfilling"  # stands in the place of a layout id until all of a partition's history is stored

TimerCursor = tuple[int, str]
"""(due, ms UTC; customer): the last timer that was taken, in the order in which `Store.due` gives them; "" is before
every customer."""


BudgetSpent = tuple[tuple[int, int], ...]
"""(first minute of a stretch of event time, episodes opened in it), oldest first."""


class History(NamedTuple):
    """What a backfilled file held of this partition: the records below `until_offset` that arrived before `until_ms`
    (Kafka's timestamp, ms UTC). Where a topic's timestamps are not in order, such records lie behind the offset from
    which the stream went on; they are not folded a second time."""

    until_ms: int
    until_offset: int


class Hour(NamedTuple):
    """The hour of a partition's log that has begun: hours since the epoch, UTC, and its records so far."""

    number: int
    records: int


class Stretch(NamedTuple):
    """Offsets [start, end) of a partition."""

    start: int
    end: int

    def __contains__(self, offset: object) -> bool:
        return isinstance(offset, int) and self.start <= offset < self.end

    def grown(self, start: int, end: int) -> "Stretch":
        """With [start, end) at its end; as it is when that does not follow."""
        return self._replace(end=end) if start == self.end else self


class Checkpoint(NamedTuple):
    """Where a partition is. The fence compares it whole.

    offset:       the consumer position to go on from, i.e. the next offset to fold, >= 0
    sequence:     commits so far, >= 0, so that no two checkpoints of one history are equal
    timer_ms:     nothing of the partition is due before, int64 ms UTC, 0 = timers have not begun
    layout:       id of the record layout
    partitions:   of the input topic, since a customer's partition depends on their number
    timer_cursor: (timer_ms, customer) of the last timer taken, None = none of `timer_ms` yet
    topic_id:     Kafka's id of the input topic, "" = unknown
    leader_epoch: of the last batch passed, -1 = unknown
    nonce:        16 hex digits of the history that this checkpoint belongs to (`draw_nonce`), "" = none. Two owners
                  that a failover sets off from the same checkpoint make equal offsets and sequences, but not equal
                  nonces
    history:      what was in it before its first record was folded, None = nothing: it was made from the log alone
    budget:       what of the policy's budget of alerts is used (`stream/decision/budget.py`), () = nothing
    silent:       what of the log was folded without a word, having been decided by an earlier state: a rebuild, a store
                  that was lost; None = nothing. Of a dead letter from there the earlier state had not folded the
                  record, and this one may have
    names:        the key by which the store hides customers' ids, "" = none; the store's own affair, and "" outside
    hour:         the hour of the log that has begun (`stream/turn/volume.py`), None = no record was counted yet
    extra:        (key, value) pairs of a later release, kept and written back as they are
    """

    offset: int
    sequence: int
    timer_ms: int
    layout: str
    partitions: int
    timer_cursor: TimerCursor | None = None
    topic_id: str = ""
    leader_epoch: int = -1
    nonce: str = ""
    history: History | None = None
    budget: BudgetSpent = ()
    silent: Stretch | None = None
    names: str = ""
    hour: Hour | None = None
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def timers(self) -> TimerCursor:
        """How far timers were taken: nobody is due at or before it, in the order of `Store.due`."""
        return self.timer_cursor or (self.timer_ms, "")

    def at_timers(self, position: TimerCursor) -> Self:
        """The same with timers taken to `position`, which is never below where they are."""
        position = max(position, self.timers)
        return self._replace(timer_ms=position[0], timer_cursor=position if position[1] else None)

    def text(self) -> str:
        """One line, the same for equal checkpoints."""
        text = (
            f"offset={self.offset} sequence={self.sequence} timer_ms={self.timer_ms} layout={self.layout}"
            f" partitions={self.partitions}"
        )
        if (cursor := self.timer_cursor) is not None:
            text += f" timer_cursor={cursor[0]}:{quote(cursor[1], safe='')}"
        if self.topic_id:
            text += f" topic_id={self.topic_id}"
        if self.leader_epoch != -1:
            text += f" leader_epoch={self.leader_epoch}"
        if self.nonce:
            text += f" nonce={self.nonce}"
        if (history := self.history) is not None:
            text += f" history={history.until_ms}:{history.until_offset}"
        if self.budget:
            text += f" budget={','.join(f'{stretch}:{used}' for stretch, used in self.budget)}"
        if (silent := self.silent) is not None:
            text += f" silent={silent.start}:{silent.end}"
        if self.names:
            text += f" names={self.names}"
        if (hour := self.hour) is not None:
            text += f" hour={hour.number}:{hour.records}"
        if self.extra:
            text += "".join(f" {key}={value}" for key, value in self.extra)
        return text

    def __str__(self) -> str:
        """For a log, where nobody is named."""
        return self._replace(timer_cursor=None).text()

    @property
    def is_readable(self) -> bool:
        """True when `parse` would give this very checkpoint."""
        return (
            min(self.offset, self.sequence, self.timer_ms, self.partitions, self.leader_epoch + 1) >= 0
            and _is_word(self.layout)
            and (not self.topic_id or _is_word(self.topic_id))
            and (not self.nonce or _is_word(self.nonce))
            and (self.timer_cursor is None or _is_cursor(self.timer_cursor))
            and (self.history is None or min(self.history) >= 0)
            and all(stretch >= 0 and used > 0 for stretch, used in self.budget)
            and (self.silent is None or 0 <= self.silent.start <= self.silent.end)
            and (not self.names or _is_word(self.names))
            and (self.hour is None or min(self.hour) >= 0)
            and (not self.extra or _are_foreign(self.extra))
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The checkpoint that `text()` wrote. Raises LayoutError for anything else."""
        if text == RESETTING:
            raise LayoutError("a reset of this partition was begun and has not finished", hint=REBUILD)
        try:
            pairs = [(key, value) for key, _, value in (pair.partition("=") for pair in text.split(" "))]
            known = {key: _READ[key](value) for key, value in pairs if key in _READ}
            checkpoint = cls(**known, extra=tuple(pair for pair in pairs if pair[0] not in _READ))
        except (TypeError, ValueError):
            checkpoint = None
        if checkpoint is None or not checkpoint.is_readable or checkpoint.text() != text:
            raise LayoutError(f"this checkpoint is not one of ours: {text[:120]!r}", hint=REBUILD)
        return checkpoint


def draw_nonce() -> str:
    """A new history's nonce: drawn when a partition is opened, and part of every checkpoint that this owner writes."""
    return secrets.token_hex(8)


def check_checkpoint(checkpoint: Checkpoint | None, layout_id: str, partitions: int) -> None:
    """Refuse a partition whose state this worker could not read or would misplace. Raises LayoutError.

    Another policy section is no other state: the records' behaviour is read, the episodes begin anew; the owner's first
    commit says the new id.
    """
    if checkpoint is None:
        return
    if checkpoint.layout == BACKFILLING:
        raise LayoutError(
            "a backfill of this partition was begun and has not finished", hint="run it again, with --reset"
        )
    if fold_of(checkpoint.layout) != fold_of(layout_id):
        raise LayoutError(
            f"the stored state has record layout {checkpoint.layout}, the feature spec makes {layout_id}",
            hint=f"go back to the old spec, or {REBUILD}",
        )
    if checkpoint.partitions != partitions:
        raise LayoutError(
            f"the stored state belongs to a topic of {checkpoint.partitions} partitions, this one has {partitions}",
            hint="customers moved, with half of their history: send all events anew, by key, to another topic, with"
            " another kafka.group and redis.prefix",
        )


def _cursor_of(text: str) -> TimerCursor:
    due, _, customer = text.partition(":")
    return int(due), unquote(customer, errors="strict")


def _history_of(text: str) -> History:
    until_ms, _, until_offset = text.partition(":")
    return History(int(until_ms), int(until_offset))


def _budget_of(text: str) -> BudgetSpent:
    pairs = (pair.partition(":")[::2] for pair in text.split(","))
    return tuple((int(stretch), int(used)) for stretch, used in pairs)


def _stretch_of(text: str) -> Stretch:
    start, _, end = text.partition(":")
    return Stretch(int(start), int(end))


def _hour_of(text: str) -> Hour:
    number, _, records = text.partition(":")
    return Hour(int(number), int(records))


_READ: dict[str, Callable[[str], Any]] = {
    "offset": int,
    "sequence": int,
    "timer_ms": int,
    "layout": str,
    "partitions": int,
    "timer_cursor": _cursor_of,
    "topic_id": str,
    "leader_epoch": int,
    "nonce": str,
    "history": _history_of,
    "budget": _budget_of,
    "silent": _stretch_of,
    "names": str,
    "hour": _hour_of,
}
"""How the value of each known key is read; what cannot be read so raises ValueError."""

_WORD = re.compile(r"[!-~]+", re.ASCII)
_KEY = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


@lru_cache(maxsize=256)
def _is_word(text: str) -> bool:
    """Printable ASCII without blanks; asked of the same few ids at every commit."""
    return _WORD.fullmatch(text) is not None


def _is_cursor(cursor: TimerCursor) -> bool:
    try:
        cursor[1].encode()  # JSON can smuggle in half a surrogate pair, which UTF-8 cannot write
    except UnicodeEncodeError:
        return False
    return cursor[0] >= 0


@lru_cache(maxsize=16)
def _are_foreign(extra: tuple[tuple[str, str], ...]) -> bool:
    """Keys that this release does not know, each once, with values that stand in one line."""
    keys = [key for key, _ in extra]
    return (
        len(set(keys)) == len(keys)
        and all(_KEY.fullmatch(key) and key not in _READ for key in keys)
        and all(not value or _is_word(value) for _, value in extra)
    )
