"""The first step of a turn: the records of its customers, hot ones from memory, the others of the store.

cache ─▶ who is known as of the checkpoint ─┐
store ─▶ everybody else, a round trip a server ─┴▶ rows[m], zeros of who has none
"""

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.store.cache import Cache
from ebbtide.featurestore.store.protocol import Store
from ebbtide.stream.turn.answers import answers
from ebbtide.stream.turn.work import Work


async def load(work: Work, layout: Layout, cache: Cache, store: Store) -> Rows:
    """structured[m], of the work's customers; a piece whose partition the store does not answer for leaves the work."""
    customers, bounds = work.events.customers, work.bounds.tolist()
    rows = np.zeros(len(customers), f"V{layout.itemsize}")  # NumPy copies structured records by field
    missing: dict[int, NDArray[np.int64]] = {}
    for j in work.alive:
        low, high = bounds[j], bounds[j + 1]
        if low == high:
            continue
        opened = work.pieces[j].opened
        known, found = cache.get(opened.partition, opened.stored, customers[low:high])
        rows[low:high] = known.view(rows.dtype)
        if not found.all():
            missing[j] = np.flatnonzero(~found) + low
    asked = [
        (work.pieces[j].opened.partition, [customers[i] for i in at.tolist()]) for j, at in missing.items()
    ]
    failed: dict[int, Exception] = {}
    for j, answer in zip(missing, await answers(store.load_each(asked)), strict=True):
        if isinstance(answer, Exception):
            failed[j] = answer
        else:
            rows[missing[j]] = answer[0].view(rows.dtype)
    work.fail(failed)
    return rows.view(layout.dtype)
