"""What has been said already, and is not said again: the meaning of the group's committed offset and its metadata.

    offset 0 ────────── committed ─────────── alerts_from ──────────▶
           everything was sent       │ dead letters, tombstones,  │ everything is sent
           (or is suppressed)        │ scores are sent            │
    timers   ────────── timers_from ───────── silences_from_ms ─────▶
           what they took was sent   │ taken without an alert     │ everything is sent

This module alone says what is written there, and reads it: `sequence=37 timers=1700000000000:ann …`. The committed
offset is a checkpoint of which everything was sent: its offset, its sequence (what of the outbox is newer is sent
again) and how far its timers were (`TimerCursor`); none of the three ever moves back. An alert's own position decides
nothing: a silence's lies at the customer's last activity, far below.

A state that is older than the committed offset (a failover that lost its tail, a Redis that was lost altogether, a
rebuild) is made again by the very path that made it the first time, and only what is sent is held back: its log is
folded to that offset, then its timers are taken to their cursor, then everything speaks. On a first start on an old
topic the committed offset stands at the log's beginning, and `alerts_from` says from where on alerts are news; so bad
records of the past become dead letters once, and nobody is alerted about what is long over. The same holds for time: a
first start, an upgrade from a release without timers, timers that were off and the gap after a backfill make many
customers due at once; what was due by `silences_from_ms` is taken, and not alerted about.

It refuses to know who sends what (`stream/pipeline.py`) and when the committed offset is committed
(`stream/partition.py`).
"""

from typing import NamedTuple, Self
from urllib.parse import quote, unquote

from ebbtide.featurestore.store.checkpoint import Checkpoint, TimerCursor
from ebbtide.stream.batch import CommittedOffset

FOREVER = 2**63 - 1


class Suppression(NamedTuple):
    """Nothing decided at an offset below `outputs_from` is sent, nor an alert decided below `alerts_from` (not below
    it); no outbox entry of `sequence` or before; nothing that timers take up to `timers_from`; no alert of a silence or
    expiry due by `silences_from_ms` (ms UTC). `timers_known`: False when it was written by a release without timers.
    `timers_off`: nobody takes who is due."""

    outputs_from: int = 0
    alerts_from: int = 0
    sequence: int = 0
    timers_from: TimerCursor = (0, "")
    silences_from_ms: int = 0
    timers_known: bool = True
    timers_off: bool = False

    @classmethod
    def by(cls, committed: CommittedOffset) -> Self:
        """What a group's committed offset says. Metadata that another tool or an older release wrote says nothing of
        timers; then the offset counts, and an `alerts_from`."""
        said = dict(pair.partition("=")[::2] for pair in committed.metadata.split(" "))
        alerts_from = max(committed.offset, _number(said.get("alerts_from", "")))
        ms, _, customer = said.get("timers", "").partition(":")
        if not (ms.isdecimal() and said.get("sequence", "").isdecimal()):
            return cls(committed.offset, alerts_from, timers_known=False)
        return cls(
            committed.offset, alerts_from, int(said["sequence"]), (int(ms), unquote(customer)),
            _number(said.get("silences_from_ms", "")), timers_off=said.get("timers_off") == "1",
        )  # fmt: skip

    def from_now(
        self, stored: Checkpoint | None, committed: CommittedOffset | None, begin: int, end: int, now_ms: int
    ) -> tuple[Self, CommittedOffset]:
        """What a partition begins with that nobody has worked on, or nobody with timers: nothing that was due by now is
        news, nor what a log [begin, end) holds when there is no state of it; and the committed offset to say so."""
        first = self._replace(silences_from_ms=now_ms, timers_known=True)
        if committed is not None:
            at = committed.offset
        elif stored is not None:
            at = stored.offset
        else:
            at, first = begin, first._replace(outputs_from=begin, alerts_from=end)
        # Of an outbox that is there nothing is known to be sent.
        return first, first.committed_at(Checkpoint(at, first.sequence, 0, "", 0))

    def with_timers(self, *, off: bool, news_from_ms: int) -> Self:
        """As a worker goes on whose timers are `off`, or not. Where they were off and are not any more, who was due by
        `news_from_ms` is no news: it may be the silences of months."""
        if self.timers_off and not off:
            return self._replace(timers_off=False, silences_from_ms=max(self.silences_from_ms, news_from_ms))
        return self._replace(timers_off=off)

    def committed_at(self, checkpoint: Checkpoint) -> CommittedOffset:
        """What is to be committed when all up to `checkpoint` has been sent."""
        timers = max(self.timers_from, checkpoint.timers)
        said = f"sequence={max(self.sequence, checkpoint.sequence)} timers={timers[0]}:{quote(timers[1], safe='')}"
        if self.timers_off:
            said += " timers_off=1"
        if self.alerts_from > checkpoint.offset:
            said += f" alerts_from={self.alerts_from}"
        if self.silences_from_ms > timers[0]:
            said += f" silences_from_ms={self.silences_from_ms}"
        return CommittedOffset(checkpoint.offset, said)

    def timers_behind(self, checkpoint: Checkpoint) -> bool:
        """The log has been folded as far as it was, and its timers not: they come next, before any event."""
        return checkpoint.offset >= self.outputs_from and checkpoint.timers < self.timers_from


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


NO_SUPPRESSION = Suppression()
"""All is news."""
SUPPRESS_ALL = Suppression(FOREVER, FOREVER)
"""Of a rebuild beside a worker, which speaks for it."""
