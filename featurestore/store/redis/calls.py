"""What the script of a commit is given, and what it answers; the checkpoint as it is stored, which is its fence.

Where names are hidden (`names.py`), so are the checkpoint's timer cursor and the outbox's ids and entries; the
checkpoint says by which key.
"""

import re
from typing import Any

from ebbtide.featurestore.errors import Fenced, LayoutError
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.redis.codec import RecordCodec, packed
from ebbtide.featurestore.store.redis.keys import Keys
from ebbtide.featurestore.store.redis.names import OTHER_KEY, Names


class Calls:
    """Of the partitions of one topic; pure."""

    def __init__(self, keys: Keys, names: Names, codec: RecordCodec, at_risk_max: int) -> None:
        self._keys, self._names, self._codec, self._at_risk_max = keys, names, codec, at_risk_max

    def _text_of(self, checkpoint: Checkpoint | None) -> str:
        """A checkpoint as it is stored; "" for none."""
        if checkpoint is None:
            return ""
        if self._names.id:
            if checkpoint.timer_cursor is not None:
                due_ms, customer = checkpoint.timer_cursor
                checkpoint = checkpoint._replace(timer_cursor=(due_ms, self._names.stored(customer)))
            checkpoint = checkpoint._replace(names=self._names.id)
        return checkpoint.text()

    def checkpoint_of(self, text: bytes) -> Checkpoint:
        """The checkpoint that was stored as `text`. Raises LayoutError."""
        stored = Checkpoint.parse(text.decode(errors="replace"))
        if stored.names != self._names.id:
            here, there = (f"by key {key}" if key else "not" for key in (self._names.id, stored.names))
            raise LayoutError(f"customers' ids are hidden {there}, and here {here}", hint=OTHER_KEY)
        cursor = stored.timer_cursor
        if cursor is None or not stored.names:
            return stored._replace(names="")
        return stored._replace(names="", timer_cursor=(cursor[0], self._names.customer(cursor[1].encode())))

    def apply(self, commit: Commit) -> tuple[list[str], list[Any]]:
        """Keys and arguments of the script, as `apply.lua` lists them."""
        record, sealed = self._keys.tags[commit.partition] + "c:", self._names.sealed
        keys = [
            *self._keys.fixed(commit.partition),
            *self._keys.parts(commit.partition),
            *self._keys.records(commit.partition, commit.customers),
            *self._keys.records(commit.partition, commit.forgotten),
            *([] if commit.hours is None else [self._keys.hours(commit.partition)]),
        ]
        risks = commit.risks
        args = [
            self._text_of(commit.expected),
            self._text_of(commit.checkpoint),
            len(record.encode()) + 1,  # Lua counts bytes, from 1
            len(commit.customers),
            len(commit.outbox),
            len(commit.acked),
            len(risks),
            self._at_risk_max,
            int(self._names.composite),
            " ".join(map(str, commit.hours or ())),
            *commit.due.tolist(),
            *self._codec.pack(commit.rows),
            *(
                sealed(part)
                for at, entry in enumerate(commit.outbox)
                for part in (entry.id, packed(at, entry))
            ),
            *map(sealed, commit.acked),
            *(part for p, customer in risks for part in (p, self._names.stored(customer))),
        ]
        return keys, args

    def check_reply(self, commit: Commit, found: list[bytes]) -> None:
        """Raises Fenced when the script found another checkpoint than the one expected."""
        if found:
            expected = _unnamed(self._text_of(commit.expected)) or "not begun"
            at = _unnamed(found[0].decode(errors="replace")) or "not begun"
            raise Fenced(f"partition {commit.partition} is at [{at}], this owner expected [{expected}]")


def _unnamed(text: str) -> str:
    """A checkpoint's text for a log, where nobody is named."""
    return re.sub(r" timer_cursor=\S+", "", text)
