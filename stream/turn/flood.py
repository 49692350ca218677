"""Is most of what arrives bad? Then a wrong mapping would bury the stream in its own dead letters."""

from bisect import bisect_left
from collections.abc import Sequence

from ebbtide.stream.batch import Record
from ebbtide.stream.errors import DeadLetterFlood
from ebbtide.stream.sliding_share import SlidingShare

FLOOD_RECORDS, FLOOD_RECORDS_MIN = 10_000, 1_000
"""A share is judged over the last 10,000 records: a bad deploy shows in seconds. Below 1,000 it is noise."""


class FloodGuard:
    """Stops a partition of which most is bad: a wrong mapping would bury the stream in its own dead letters.

    `share_max` in (0, 1]: more than this share of the last FLOOD_RECORDS records, or of FLOOD_RECORDS_MIN at least, is
    a flood. What was sent on before stays in the dead-letter topic.
    """

    def __init__(self, share_max: float) -> None:
        self._share_max = share_max
        self._recent = SlidingShare(FLOOD_RECORDS)
        self._counted = 0  # the offset after the last one

    def admit(self, records: Sequence[Record], bad: Sequence[int]) -> None:
        """Count the records of a batch, those at the indexes `bad` as bad. Raises DeadLetterFlood.

        Each offset counts once: a batch that is tried again and again through an outage is no flood.
        """
        known = bisect_left(records, self._counted, key=lambda record: record.offset)
        if known == len(records):
            return
        self._counted = records[-1].offset + 1
        recent = self._recent
        recent.add(len(records) - known, sum(index >= known for index in bad))
        if recent.of >= FLOOD_RECORDS_MIN and recent.bad > self._share_max * recent.of:
            raise DeadLetterFlood(
                f"{recent.bad:,} of the last {recent.of:,} records are bad",
                hint="see `ebbtide dlq list` for why; mend the mapping or the producer, or raise dead_letter_share_max",
            )
