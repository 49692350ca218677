"""The model folder watched while a worker serves: missing sizes first, then other versions as they appear or are
pinned.

A bad version is refused by name and the running one stays (`model/serving/slot.py`); nothing here ends a worker.
"""

import asyncio

from ebbtide.model.serving.slot import ScorerSlot
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.stream.policy import Policy
from ebbtide.stream.scoring.executor import OwnThread


async def watch_models(slot: ScorerSlot[Policy], every_s: float, metrics: Metrics) -> None:
    """Until cancelled. A load under way is not waited for: its thread ends with the process."""
    metrics.serving(lambda: (slot.current.name, slot.current.version))
    metrics.refused(lambda: len(slot.refused) + bool(slot.trouble))
    loader = OwnThread("models")
    try:
        await loader.run(slot.widen)
        while True:
            await asyncio.sleep(every_s)
            await loader.run(slot.refresh)
    finally:
        loader.close()
