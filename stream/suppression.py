"""What has been said already, and is not said again: the meaning of the group's committed offset.

    offset 0 ────────── mark ─────────────── alerts_from ──────────▶
           everything was sent       │ dead letters, tombstones,  │ everything is sent
           (or is suppressed)             │ scores are sent       │

Kafka's committed offset is the committed offset: what was applied before it was sent, too. A state that is older than
the committed offset (a failover that lost its tail, a Redis that was lost altogether, a rebuild) is made again by the
very path that made it the first time, and only what is sent has to be held back. On a first start on an old topic the
committed offset stands at the log's beginning and its metadata says from where on alerts are news; so bad records of
the past become dead letters once, and nobody is alerted about what is long over.

It knows offsets and one line of text. It refuses to know who sends what (`stream/pipeline.py`) and when the committed
offset is committed (`stream/partition.py`).
"""

import re
from typing import NamedTuple, Self

from ebbtide.stream.batch import CommittedOffset

FOREVER = 2**63 - 1
_METADATA = re.compile(r"timer_ms=(\d+)(?: alerts_from=(\d+))?", re.ASCII)


class Suppression(NamedTuple):
    """Nothing decided at an offset below `everything` is sent; no alert decided below `alerts` (≥ `everything`) is."""

    outputs_from: int
    alerts_from: int

    @classmethod
    def by(cls, committed: CommittedOffset) -> Self:
        """What a group's mark says. Metadata that another tool wrote says nothing: then the offset alone counts."""
        found = _METADATA.fullmatch(committed.metadata)
        alerts_from = int(found[2]) if found is not None and found[2] else 0
        return cls(committed.offset, max(committed.offset, alerts_from))

    def committed_at(self, offset: int, timer_ms: int) -> CommittedOffset:
        """The committed offset at `offset` under this suppression; `timer_ms`: the partition's timer clock, ms UTC."""
        later = f" alerts_from={self.alerts_from}" if self.alerts_from > offset else ""
        return CommittedOffset(offset, f"timer_ms={timer_ms}{later}")


NO_SUPPRESSION = Suppression(0, 0)
"""All is news."""
SUPPRESS_ALL = Suppression(FOREVER, FOREVER)
"""Of a rebuild beside a worker, which speaks for it."""
