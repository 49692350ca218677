"""A worker in this process whose model can be told to fail, with the metrics of a real one on HTTP."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows
from ebbtide.model.explaining.explained import Explained
from ebbtide.ops.config.settings import HttpSettings, Settings
from ebbtide.ops.http.probes import probes
from ebbtide.ops.http.server import HttpServer
from tests.support.workers.outages import inner_worker


class Faulty:
    """A real scorer. While `hangs` is set it stops answering, while `unsure` is, its explanations do not add up."""

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer
        self.hangs, self._go_on = threading.Event(), threading.Event()
        self.unsure = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.hangs.is_set():
            self._go_on.wait()
        scored: NDArray[np.float32] = self._scorer.score(rows, as_of)
        return scored

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        found: Explained = self._scorer.explain(rows, as_of)
        return found._replace(sequence=found.sequence + 1) if self.unsure.is_set() else found

    def go_on(self) -> None:
        """For good."""
        self.hangs.clear()
        self._go_on.set()


@asynccontextmanager
async def faulty_worker(settings: Settings, scorer: Faulty) -> AsyncIterator[str]:
    """It serves in the block; where its metrics are, `host:port`."""
    async with inner_worker(settings, scorer) as inner:
        asked = inner.metrics.at_scrape
        asked.lags = inner.worker.lags
        asked.call_age_s = lambda: inner.tools.batcher.call_age_s
        face = HttpServer(HttpSettings(host="127.0.0.1", port=0), probes(inner.metrics, lambda: ""))
        address = await face.start()
        try:
            yield address.removeprefix("http://")
        finally:
            scorer.go_on()
            await asyncio.sleep(0)
            await face.stop()
