"""Where a partition is: its checkpoint, which is also the fencing token of every commit.

Whoever commits says which checkpoint it last saw. When that is no longer the stored one, somebody else has moved the
partition: `Fenced`, and nothing is written.
"""

import re
from typing import NamedTuple, Self

from ebbtide.featurestore.errors import LayoutError

REBUILD = "make the state again from the topic: `ebbtide rebuild --prefix NEW`, then set redis.prefix to it"


class Checkpoint(NamedTuple):
    """Where a partition is. The fence compares it whole.

    `offset`: the consumer position to go on from (the next offset to fold). `sequence`: commits so far, so that no two
    checkpoints of a history are equal. `timer_ms`: the timer clock, int64 ms UTC, 0 = not started. `layout`: id of the
    record layout. `partitions`: of the input topic, since a customer's partition depends on their number.
    """

    offset: int
    sequence: int
    timer_ms: int
    layout: str
    partitions: int

    def text(self) -> str:
        """One line, the same for equal checkpoints; an operator can read it with `GET`."""
        return " ".join(f"{name}={value}" for name, value in zip(self._fields, self, strict=True))

    @property
    def is_readable(self) -> bool:
        """True when `parse` would give this very checkpoint."""
        return _CHECKPOINT.fullmatch(self.text()) is not None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The checkpoint that `text()` wrote. Raises LayoutError for anything else."""
        match = _CHECKPOINT.fullmatch(text)
        if match is None:
            hint = REBUILD
            if text == RESETTING:
                raise LayoutError("a reset of this partition was begun and has not finished", hint=hint)
            raise LayoutError(f"this checkpoint is not one of ours: {text[:120]!r}", hint=hint)
        offset, sequence, timer_ms, layout, partitions = match.groups()
        return cls(int(offset), int(sequence), int(timer_ms), layout, int(partitions))


_CHECKPOINT = re.compile(
    r"offset=(\d+) sequence=(\d+) timer_ms=(\d+) layout=(\S+) partitions=(\d+)", re.ASCII
)
RESETTING = "resetting"  # stands in the place of a checkpoint while a reset deletes what is behind it


BACKFILLING = "backfilling"  # stands in the place of a layout id until all of a partition's history is stored


def check_checkpoint(checkpoint: Checkpoint | None, layout_id: str, partitions: int) -> None:
    """Refuse a partition whose state this worker could not read or would misplace. Raises LayoutError."""
    if checkpoint is None:
        return
    if checkpoint.layout == BACKFILLING:
        raise LayoutError(
            "a backfill of this partition was begun and has not finished", hint="run it again, with --reset"
        )
    if checkpoint.layout != layout_id:
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
