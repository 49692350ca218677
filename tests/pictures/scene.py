"""A shop whose page can be looked at: made-up customers, the real pipeline at real time, no server but the page's.

    past (weeks, folded at once) ─▶ now: visits, purchases, letters to who is silent ─▶ turns ─▶ Live ─▶ the page

Who is silent is decided about when a letter goes to them; some of them come back. The model is arithmetic, so
probabilities are no trained model's.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.model.explaining.explained import Explained
from ebbtide.ops.config.settings import HttpSettings
from ebbtide.ops.http.customers import Customers
from ebbtide.ops.http.server import HttpServer
from ebbtide.ops.page.live import Live
from ebbtide.ops.page.routes import page_routes
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.telemetry import Telemetry, TurnDone
from tests.bench.adapter import Pipelines
from tests.support.seams.answering import answering
from tests.support.seams.scoring import LAYOUT, SPEC
from tests.support.seams.streams import ListSink, LogRecord
from tests.support.workers.worlds import Arithmetic

TOPIC, PARTITIONS, CUSTOMERS, SEED = "shop", 4, 400, 7
DAY_MS = 86_400_000
TICK_S = 0.1
PAST_DAYS, SILENT_DAYS = 50, 5.0


class Arithmetical(Arithmetic):
    """Its reasons name more than silence."""

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        values, contributions = np.zeros((2, len(rows), len(features(SPEC))), np.float32)
        known = {
            "silence": ((as_of - rows["last_seen"]) / DAY_MS, 0.12),
            "tenure": ((as_of - rows["first_seen"]) / DAY_MS, -0.004),
            "activity_total": (rows["activity_count"], -0.05),
            "gap_usual": (np.expm1(rows["gap_mean"]) * 1_000 / DAY_MS, 0.03),
        }
        for column, feature in enumerate(features(SPEC)):
            if feature.name in known:
                figure, weight = known[feature.name]
                values[:, column], contributions[:, column] = figure, weight * figure
        return Explained.by(values, contributions)


class Told(Telemetry):
    """Turns go to the page."""

    def __init__(self) -> None:
        self.live: Live | None = None

    def turn_done(self, turn: TurnDone) -> None:
        if self.live is not None:
            self.live.turn(turn)


class Shown(ListSink):
    """Alerts go to the page."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    async def send_all(self, messages: Sequence[Message]) -> None:
        if self._told.live is not None:
            self._told.live.sent(messages)


class Shop:
    """Its customers and what they do; `silent_days[c]` is how long customer c has been away."""

    def __init__(self, clock: SystemClock) -> None:
        self._clock, self._rng = clock, np.random.default_rng(SEED)
        self._silent_days = self._rng.exponential(SILENT_DAYS, CUSTOMERS)
        self._ends, self._made = [0] * PARTITIONS, 0

    def past(self) -> list[FetchedBatch]:
        """Visits and purchases of weeks, up to when each was seen last."""
        now_ms, rng = self._clock.now_ms(), self._rng
        times = []
        for customer, silent in enumerate(self._silent_days.tolist()):
            days = silent + rng.uniform(0, PAST_DAYS, int(rng.integers(3, 12)))
            times += [(now_ms - int(day * DAY_MS), customer) for day in [*days.tolist(), silent]]
        return self._batches([(at_ms, who, self._kind()) for at_ms, who in sorted(times)])

    def tick(self) -> list[FetchedBatch]:
        """What happens in a tick: the livelier come by themselves, the silent get letters, and some come back."""
        now_ms, rng = self._clock.now_ms(), self._rng
        here = np.flatnonzero(self._silent_days < SILENT_DAYS)
        wave = 1 + 0.4 * np.sin(now_ms / 9_000)
        done = [(now_ms, int(who), self._kind()) for who in rng.choice(here, rng.poisson(7 * wave))]
        if rng.random() < 0.25:
            done.append((now_ms, int(rng.integers(CUSTOMERS)), "mail"))
        if rng.random() < 0.03:
            back = int(rng.integers(CUSTOMERS))
            self._silent_days[back] = 0.0
            done.append((now_ms, back, "visit"))
        return self._batches(done)

    def _kind(self) -> str:
        return "purchase" if self._rng.random() < 0.12 else "visit"

    def _batches(self, done: Sequence[tuple[int, int, str]]) -> list[FetchedBatch]:
        logs: dict[int, list[LogRecord]] = defaultdict(list)
        for at_ms, who, kind in done:
            name, self._made = f"c-{10_000 + who * 97 % 89_989}", self._made + 1
            event = {"user_id": name, "event_id": f"e{self._made}", "type": kind, "ts": at_ms}
            partition = partition_for(name.encode(), PARTITIONS)
            offset = self._ends[partition] + len(logs[partition])
            value = orjson.dumps(event | ({"value": 20.0} if kind == "purchase" else {}))
            logs[partition].append(LogRecord(offset, at_ms, name.encode(), value))
        batches = []
        for partition, log in logs.items():
            start, self._ends[partition] = self._ends[partition], self._ends[partition] + len(log)
            batches.append(FetchedBatch(TOPIC, partition, 0, start, start + len(log), log))
        return batches


@asynccontextmanager
async def shop() -> AsyncIterator[str]:
    """The address of its page, while it works."""
    clock, store, told = SystemClock(), MemoryStore(LAYOUT.dtype, PARTITIONS), Told()
    model = Arithmetical(SPEC, EpisodePolicy.of(enter=0.45, exit=0.3, cooldown_ms=0), version=12)
    about: dict[str, Any] = {
        "ready": True, "reasons": [], "model": "shop", "version": 12, "partitions": PARTITIONS, "lag_s": 0.0
    }  # fmt: skip
    settings, customers = HttpSettings(port=0), Shop(clock)
    async with Pipelines(TOPIC, LAYOUT, model, store, Shown(told), PARTITIONS, told) as pipelines:
        await pipelines.take(customers.past())
        told.live = live = Live(f"{TOPIC}-alerts", clock, lambda: about)

        async def work() -> None:
            while True:
                if batches := customers.tick():
                    await pipelines.take(batches)
                await asyncio.sleep(TICK_S)

        routes = [
            *Customers(LAYOUT, store, answering(model), clock).routes(),
            *page_routes(live, settings, clock),
        ]
        server = HttpServer(settings, routes)
        working = asyncio.create_task(work())
        try:
            yield await server.start()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await server.stop()
