"""What has been said already, and is not said again: the meaning of the group's mark.

    offset 0 ────────── mark ─────────────── alerts_from ──────────▶
           everything was sent       │ letters, tombstones,  │ everything is sent
           (or is muted)             │ scores are sent       │

Kafka's committed offset is the mark: what was applied before it was sent, too. A state that is older than the mark (a
failover that lost its tail, a Redis that was lost altogether, a rebuild) is made again by the very path that made it
the first time, and only what is sent has to be held back. On a first start on an old topic the mark stands at the
log's beginning and its metadata says from where on alerts are news; so bad records of the past become letters once,
and nobody is alerted about what is long over.

It knows offsets and one line of text. It refuses to know who sends what (`stream/pipeline.py`) and when the mark is
committed (`stream/partition.py`).
"""

import re
from typing import NamedTuple, Self

from ebbtide.stream.batch import Mark

FOREVER = 2**63 - 1
_SAID = re.compile(r"timer_ms=(\d+)(?: alerts_from=(\d+))?", re.ASCII)


class Muted(NamedTuple):
    """Nothing decided at an offset below `everything` is sent; no alert decided below `alerts` (≥ `everything`) is."""

    everything: int
    alerts: int

    @classmethod
    def by(cls, mark: Mark) -> Self:
        """What a group's mark says. Metadata that another tool wrote says nothing: then the offset alone counts."""
        said = _SAID.fullmatch(mark.metadata)
        alerts_from = int(said[2]) if said is not None and said[2] else 0
        return cls(mark.offset, max(mark.offset, alerts_from))

    def mark(self, offset: int, timer_ms: int) -> Mark:
        """The mark at `offset` under this muting; `timer_ms`: the partition's timer clock, ms UTC."""
        later = f" alerts_from={self.alerts}" if self.alerts > offset else ""
        return Mark(offset, f"timer_ms={timer_ms}{later}")


NOTHING = Muted(0, 0)
"""All is news."""
ALL = Muted(FOREVER, FOREVER)
"""Of a rebuild beside a worker, which speaks for it."""
