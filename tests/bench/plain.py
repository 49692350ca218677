"""What the two services that are not ours have in common: the features by hand, and the network as it was saved.

It knows the features that a data scientist would have left beside the network, and needs NumPy and TensorFlow alone,
since one of the services lives in an environment where nothing of ours is installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
KINDS = (
    "page_view", "search", "add_to_cart", "wishlist", "purchase", "review", "support_ticket", "newsletter",
)  # fmt: skip
PURCHASE = KINDS.index("purchase")
CONTACT = "newsletter"
WINDOWS = {"1h": (HOUR_MS, 6), "1d": (DAY_MS, 8), "7d": (7 * DAY_MS, 7), "30d": (30 * DAY_MS, 6)}
"""Length in ms and tiles. A window's count is the sum of its last tiles."""
HOPS = [length // tiles for length, tiles in WINDOWS.values()]
TILES = [tiles for _, tiles in WINDOWS.values()]
SEQUENCE = 32
SCORE_EVERY_MS = 3 * HOUR_MS

Entry = tuple[int, int, float]
"""An event in the sequence: code of its kind, time in ms, value."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A customer as the features see them: counts[kind][window], sums[window], when each kind was last seen (0: never).
    `last` and `active`: the last event that is no contact, and how many there were."""

    first: int
    last: int
    active: int
    seen: Sequence[int]
    counts: Sequence[Sequence[int]]
    sums: Sequence[float]


def feature_names() -> list[str]:
    """The network's inputs, in order: as the data scientist who trained it left them."""
    rhythm = [
        "silence", "tenure", "activity_total", "gap_usual", "gap_spread", "gap_missing", "silence_ratio",
        "active_days_30d",
    ]  # fmt: skip
    windows = [f"{kind}_count_{window}" for kind in KINDS for window in WINDOWS]
    values = [f"purchase_{aggregate}_{window}" for aggregate in ("sum", "mean") for window in WINDOWS]
    recency = [f"{kind}_since" for kind in KINDS] + [f"{kind}_never" for kind in KINDS]
    return rhythm + windows + values + recency + [f"{kind}_decay_1d" for kind in KINDS]


def filled_columns() -> NDArray[np.bool_]:
    """Which of the network's features these services compute; the others are zero."""
    return np.array(
        [not ("_decay_" in name or name in ("active_days_30d", "gap_spread")) for name in feature_names()]
    )


def features_of(who: Profile, as_of: int) -> list[float]:
    """A row of the network's features."""
    silence = (as_of - who.last) / DAY_MS if who.last else 0.0
    usual = (who.last - who.first) / DAY_MS / (who.active - 1) if who.active > 1 else 0.0
    row = [silence, (as_of - who.first) / DAY_MS, who.active, usual, 0.0, float(who.active < 2)]
    row += [silence / usual if usual else 0.0, 0.0]
    for kind in who.counts:
        row += kind
    row += who.sums
    row += [total / n if n else 0.0 for total, n in zip(who.sums, who.counts[PURCHASE], strict=True)]
    row += [(as_of - ts) / DAY_MS if ts else 0.0 for ts in who.seen]
    row += [float(not ts) for ts in who.seen]
    row += [0.0] * len(KINDS)
    return row


class PlainModel:
    """The SavedModel, and the arrays it takes."""

    def __init__(self, path: Path) -> None:
        import tensorflow as tf

        self._tf = tf
        self._loaded = tf.saved_model.load(str(path))
        self._score = self._loaded.signatures["score"]

    def score(self, rows: Sequence[list[float]], sequences: Sequence[Sequence[Entry]]) -> NDArray[np.float32]:
        """p float32[n] of features[n] and the last events, oldest first. TensorFlow lets go of the interpreter."""
        n = len(rows)
        kind, count = np.zeros((n, SEQUENCE), np.int32), np.zeros((n, SEQUENCE), np.float32)
        value, gap = np.zeros((n, SEQUENCE), np.float32), np.zeros((n, SEQUENCE), np.float32)
        for i, entries in enumerate(sequences):
            before = 0
            for at, (code, ts, amount) in enumerate(entries, SEQUENCE - len(entries)):
                kind[i, at], count[i, at], value[i, at] = code + 1, 1, amount
                gap[i, at] = (ts - before) / 1000 if before else 0.0
                before = ts
        inputs = {
            "features": np.array(rows, np.float32),
            "kind": kind,
            "count": count,
            "value": value,
            "gap": gap,
        }
        out = self._score(**{name: self._tf.constant(column) for name, column in inputs.items()})
        probability: NDArray[np.float32] = out["probability"].numpy()
        return probability
