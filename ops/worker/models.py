"""The model folder watched while a worker serves: missing sizes first, then other versions as they appear or are
pinned.

A bad version is refused by name and the running one stays (`model/serving/slot.py`); nothing here ends a worker.
"""

import asyncio

from ebbtide.model.serving.runtime import device, device_memory_bytes
from ebbtide.model.serving.slot import ScorerSlot
from ebbtide.ops.observe.at_scrape import ModelNow
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.stream.clock import Clock
from ebbtide.stream.decision.policy import Policy
from ebbtide.stream.scoring.executor import OwnThread


async def watch_models(slot: ScorerSlot[Policy], every_s: float, metrics: Metrics, clock: Clock) -> None:
    """Until cancelled. A load under way is not waited for: its thread ends with the process."""
    since = {slot.current.version: clock.now_ms() / 1000}

    def now() -> ModelNow:
        served = slot.current
        # A swap is noticed at the next look at the latest, which is soon enough for a time in seconds.
        loaded_s = since.setdefault(served.version, clock.now_ms() / 1000)
        return ModelNow(served.name, served.version, loaded_s, not served.model.missing)

    asked = metrics.at_scrape
    asked.model = now
    asked.refused = lambda: len(slot.refused) + bool(slot.trouble)
    where = device()
    asked.device = lambda: (where.strip("/"), device_memory_bytes())
    loader = OwnThread("models")
    try:
        await loader.run(slot.widen)
        while True:
            await asyncio.sleep(every_s)
            await loader.run(slot.refresh)
            now()
    finally:
        loader.close()
