"""All labelled examples of a log on disk, written as they are found: never more than a few pieces of them are held.

    replay ─points─▶ labelled? ─▶ piece (PIECE_ROWS) ─feature layer, labeller─▶ shard

It is another walk through the log, in this process: what it costs is features and disk, some 1.5 KB a row. What of it
is learned from, and what each row weighs, is for whoever reads it (`training/prepare.py`).
"""

from pathlib import Path

import numpy as np

from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.replay import SNAPSHOT, replay
from ebbtide.model.examples.dataset import FEATURE_CHUNK_ROWS, History
from ebbtide.model.examples.sample import Wanted
from ebbtide.model.examples.shards import Shards, ShardWriter

PIECE_ROWS = FEATURE_CHUNK_ROWS
"""And events that are folded at once: a chunk of `replay`'s own would bring a dozen pieces of points."""


def stream_out(folder: Path, history: History, wanted: Wanted) -> Shards:
    """Every decision point and snapshot whose horizon is over, in a new folder; `wanted` says until when labels are
    known, and the snapshots' dates. Raises OSError."""
    layout, horizon = history.layout, history.layout.spec.horizon_ms
    until = wanted.known_until_ms - horizon
    writer = ShardWriter(folder)
    waiting: list[Points] = []
    for points in replay(layout, history.log, until, snapshots=wanted.snapshots, chunk=PIECE_ROWS):
        labelled = points.as_of + horizon < wanted.known_until_ms
        waiting.append(points.take((points.scored | (points.cause == SNAPSHOT)) & labelled))
        if sum(map(len, waiting)) < PIECE_ROWS:
            continue
        joined = Points.joined(layout, waiting)
        whole = len(joined) // PIECE_ROWS * PIECE_ROWS
        for start in range(0, whole, PIECE_ROWS):
            writer.append(history.examples(joined.take(np.arange(start, start + PIECE_ROWS))))
        waiting = [joined.take(np.arange(whole, len(joined)))]
    writer.append(history.examples(Points.joined(layout, waiting)))
    return writer.done()
