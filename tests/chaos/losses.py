"""Where a state was lost and made again, and by which model versions: what may have been decided twice.

    offset  ───low────────at────────high───
    state      lost ──────▶ made again ▶│           from `low` on, by whoever serves until `high` is reached again

A state that is made again says nothing of what was said before, so who decided it can't be read in any topic. Known are
the loss itself (whoever causes it says so before and after) and a checkpoint that was seen to fall back. Between two
looks a partition moves; `UNSEEN` offsets in either direction are taken for granted, of many partitions fewer each.
Invariant: a piece is too long and has too many versions rather than too few.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

UNSEEN, UNSEEN_OF_ALL = 2_000, 16_000
HOLD_S = 5.0
"""So long after a loss versions are noted at least: a look may be older than the loss."""


class FellBack(NamedTuple):
    """[low, high) of a partition was decided again, perhaps, by any of `versions`."""

    partition: int
    low: int
    high: int
    versions: set[int]


@dataclass
class Losses:
    """`fallen`: all pieces so far. Times are monotonic seconds; checkpoints and ends by partition."""

    fallen: list[FellBack] = field(default_factory=list)
    _remaking: list[tuple[FellBack, float]] = field(default_factory=list)

    @staticmethod
    def pieces(checkpoints: Sequence[int], ends: Sequence[int], *, everything: bool) -> list[FellBack]:
        """What a loss will touch that is about to happen: the whole state, or its last moments."""
        unseen = min(UNSEEN, UNSEEN_OF_ALL // len(checkpoints))
        return [
            FellBack(p, 0 if everything else max(0, at - unseen), min(max(at, end), at + unseen), set())
            for p, (at, end) in enumerate(zip(checkpoints, ends, strict=True))
        ]

    def lost(self, pieces: Sequence[FellBack], now_s: float) -> None:
        """It has happened."""
        self.fallen += pieces
        self._remaking += [(piece, now_s) for piece in pieces]

    def look(
        self, before: Sequence[int], now: Sequence[int], ends: Sequence[int], versions: set[int], now_s: float
    ) -> None:
        """The checkpoints of one look and of the one before; `versions` may serve now."""
        unseen = min(UNSEEN, UNSEEN_OF_ALL // len(now))
        for p, (was, at) in enumerate(zip(before, now, strict=True)):
            if at < was:
                high = min(max(was, ends[p]), was + unseen)
                self.lost([FellBack(p, max(0, at - unseen), high, set())], now_s)
        for piece, _ in self._remaking:
            piece.versions.update(versions)
        self._remaking = [
            (piece, since_s)
            for piece, since_s in self._remaking
            if now[piece.partition] < piece.high or now_s < since_s + HOLD_S
        ]
