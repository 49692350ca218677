"""The worker's HTTP face over a real socket: what it says, what it refuses, and that it never shows more than asked."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from featurestore.errors import StoreUnavailable
from featurestore.event import EventBatch
from featurestore.fold import Folder
from featurestore.layout import Rows
from featurestore.memory_store import MemoryStore
from featurestore.store import Head, Step
from ops.http import Face
from ops.metrics import Metrics
from ops.settings import HttpSettings
from stream.clock import ManualClock
from stream.telemetry import Dispatched, Stepped
from tests.support.scoring import LAYOUT, ArithmeticModel

DAY_MS = 86_400_000
T0 = 1_700_000_000_000


class AwayStore(MemoryStore):
    """A store that is away."""

    async def load(self, partition: int, customers: Sequence[str]) -> tuple[Rows, NDArray[np.bool_]]:
        raise StoreUnavailable("Redis at localhost:6379 does not answer")


async def filled(store: MemoryStore) -> None:
    """One customer, `ann`, who visited twice, the second time three days after the first."""
    events = EventBatch(
        ["ann"], np.zeros(2, np.int32), np.zeros(2, np.uint8), np.array([T0, T0 + 3 * DAY_MS]),
        np.full(2, np.nan), np.zeros(2, np.uint64), np.arange(2),
    )  # fmt: skip
    rows, _ = Folder(LAYOUT).fold(LAYOUT.empty(1), events)
    head = Head(2, 1, 0, LAYOUT.id, 1)
    await store.apply(Step(0, None, head, ["ann"], rows, Folder(LAYOUT).due(rows)))


@asynccontextmanager
async def face(
    store: MemoryStore, *, token: str | None = None, why: str = "", metrics: Metrics | None = None
) -> AsyncIterator[str]:
    model = ArithmeticModel()

    async def ask(
        rows: Rows, as_of: NDArray[np.int64]
    ) -> tuple[float, NDArray[np.float32], NDArray[np.float32], int]:
        values, contributions = model.explain(rows, as_of)
        return float(model.score(rows, as_of)[0]), values[0], contributions[0], model.version

    settings = HttpSettings(port=0, token=SecretStr(token) if token else None)
    served = Face(
        settings, layout=LAYOUT, store=store, metrics=metrics or Metrics(), ask=ask,
        clock=ManualClock(T0 + 10 * DAY_MS), why_not_ready=lambda: why,
    )  # fmt: skip
    try:
        yield await served.start()
    finally:
        await served.stop()


def fetch(url: str, token: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def get(url: str, token: str | None = None) -> tuple[int, str]:
    return await asyncio.to_thread(fetch, url, token)


async def test_a_customer_in_words_as_of_what_is_known_or_of_now() -> None:
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    async with face(store) as address:
        status, body = await get(address + "/v1/customers/ann")
        known = json.loads(body)
        assert status == 200
        assert known["state"]["activities"] == 2
        assert known["state"]["counts"]["visits"] == 2
        assert known["state"]["episode"]["state"] == "closed"
        assert known["features"]["silence"]["value"] == 0.0
        assert known["as_of"].startswith("2023-11-17")
        _, body = await get(address + "/v1/customers/ann?as_of=now")
        assert json.loads(body)["features"]["silence"]["words"] == "no activity for 7.0 days"
        assert json.loads(body)["probability"] > known["probability"]


async def test_what_it_refuses_it_refuses_in_words() -> None:
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    async with face(store) as address:
        for path, status, word in (
            ("/v1/customers/bob", 404, "nothing is known"),
            ("/v1/customers/" + "x" * 129, 400, "128"),
            ("/v1/customers/ann?as_of=soon", 400, "RFC 3339"),
            ("/v1/customers/ann?as_of=1", 400, "before what is known"),
            ("/v1/customers/ann?as_of=99999999999999999999", 400, "year 9999"),
            ("/nowhere", 404, "Not Found"),
        ):
            got, body = await get(address + path)
            assert got == status, path
            assert word in json.loads(body)["error"], path


async def test_a_token_guards_customers_and_nothing_else() -> None:
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    async with face(store, token="s3cret") as address:
        assert (await get(address + "/v1/customers/ann"))[0] == 401
        assert (await get(address + "/v1/customers/ann", "wrong"))[0] == 401
        assert (await get(address + "/v1/customers/ann", "s3cret"))[0] == 200
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await get(address + path))[0] == 200


async def test_alive_but_not_ready_says_why() -> None:
    async with face(AwayStore(LAYOUT.dtype, 1), why="partitions [2] are not open") as address:
        assert await get(address + "/healthz") == (200, '{"status": "ok"}')
        status, body = await get(address + "/readyz")
        assert (status, json.loads(body)["reason"]) == (503, "partitions [2] are not open")
        status, body = await get(address + "/v1/customers/ann")
        assert status == 503
        assert "does not answer" in json.loads(body)["error"]


async def test_metrics_are_prometheus_and_leave_with_their_partition() -> None:
    metrics = Metrics()
    metrics.assigned(frozenset({0, 1}))
    for partition in (0, 1):
        metrics.stepped(
            Stepped(
                partition=partition, position=10, records=10, events=8, rejected={"not_json": 2}, ignored=0,
                forgotten=0, points={"event": 3}, alerts={"opened": 1}, customers=4, seconds={"fold": 0.001},
                latency_s=0.02, lag=5,
            )
        )  # fmt: skip
    metrics.dispatched(Dispatched("idle", 3, 5, 8, 8, 0.001, 0.002, 0.003))
    async with face(MemoryStore(LAYOUT.dtype, 1), metrics=metrics) as address:
        _, body = await get(address + "/metrics")
        found = {
            (s.name, *s.labels.values()): s.value
            for family in text_string_to_metric_families(body)
            for s in family.samples
        }
        assert found["ebbtide_records_total",] == 20
        assert found["ebbtide_dead_letters_total", "not_json"] == 4
        assert found["ebbtide_alerts_total", "opened"] == 2
        assert found["ebbtide_alerts_total", "terminated"] == 0
        assert found["ebbtide_dispatches_total", "idle", "3"] == 1
        assert found["ebbtide_dispatch_padding_rows_total",] == 3
        assert found["ebbtide_partition_lag_records", "1"] == 5
        metrics.assigned(frozenset({0}))
        _, body = await get(address + "/metrics")
        assert 'ebbtide_partition_position{partition="0"}' in body
        assert 'ebbtide_partition_position{partition="1"}' not in body
        assert "ann" not in body
