"""The worker's HTTP face over a real socket: what it says, what it refuses, and that it never shows more than asked."""

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from ebbtide.featurestore.errors import StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.ops.asking.customer import Asked
from ebbtide.ops.config.settings import HttpSettings
from ebbtide.ops.http.customers import Customers
from ebbtide.ops.http.limits import Bounds
from ebbtide.ops.http.probes import probes
from ebbtide.ops.http.server import HttpServer
from ebbtide.ops.observe.logs import capture_logs
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.stream.clock import ManualClock
from ebbtide.stream.errors import ScorerUnavailable
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.telemetry import AlertSent, Dispatched, PieceDone, TurnDone
from tests.support.seams.answering import answering
from tests.support.seams.scoring import LAYOUT, ArithmeticModel

DAY_MS = 86_400_000
T0 = 1_700_000_000_000


class AwayStore(MemoryStore):
    """A store that is away."""

    async def load(self, partition: int, customers: Sequence[str]) -> tuple[Rows, NDArray[np.bool_]]:
        raise StoreUnavailable("Redis at localhost:6379 does not answer")


async def filled(store: MemoryStore, partition: int = 0) -> None:
    """One customer, `ann`, who visited twice, the second time three days after the first."""
    events = EventBatch(
        ["ann"], np.zeros(2, np.int32), np.zeros(2, np.uint8), np.array([T0, T0 + 3 * DAY_MS]),
        np.full(2, np.nan), np.zeros(2, np.uint64), np.arange(2),
    )  # fmt: skip
    rows, _ = Folder(LAYOUT).fold(LAYOUT.empty(1), events)
    head = Checkpoint(2, 1, 0, LAYOUT.id, 1)
    await store.apply(Commit(partition, None, head, ["ann"], rows, Folder(LAYOUT).due(rows)))


@asynccontextmanager
async def face(
    store: MemoryStore,
    *,
    token: str | None = None,
    why: str = "",
    metrics: Metrics | None = None,
    trouble: Exception | None = None,
    hangs: bool = False,
    stuck: str = "",
    **more: Any,
) -> AsyncIterator[str]:
    """A face's address. `trouble`: what the scorer raises; `hangs`: it never answers; `stuck`: what /healthz is to say;
    `more`: settings and `bounds`."""
    model = ArithmeticModel()
    bounds = more.pop("bounds", None)

    async def ask(rows: Rows, as_of: NDArray[np.int64]) -> Asked:
        if trouble is not None:
            raise trouble
        if hangs:
            await asyncio.Event().wait()
        return await answering(model)(rows, as_of)

    settings = HttpSettings(port=0, token=SecretStr(token) if token else None, **more)
    customers = Customers(LAYOUT, store, ask, ManualClock(T0 + 10 * DAY_MS))
    routes = [*probes(metrics or Metrics(), lambda: why, lambda: stuck), *customers.routes()]
    served = HttpServer(settings, routes, bounds=bounds)
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


async def raw(
    address: str, request: bytes, *, within_s: float = 5.0, end: bool = False
) -> tuple[int, Any, str]:
    """Status, body as JSON and head of the answer to these bytes; status 0 when the connection ends without one."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(within_s):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(re.findall(r"(?i)content-length: (\d+)", head)[0])
            return int(head.split()[1]), json.loads(await reader.readexactly(length)), head
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return 0, None, ""
    finally:
        writer.close()


def asking(path: bytes | str, *headers: bytes | str, host: str = "127.0.0.1") -> bytes:
    """A GET as it goes over the wire."""
    lines = [b"GET ", path, b" HTTP/1.1\r\nHost: ", host, *(part for h in headers for part in (b"\r\n", h))]
    return b"".join(part.encode() if isinstance(part, str) else part for part in lines) + b"\r\n\r\n"


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


async def test_a_customer_in_two_partitions_is_said_to_be() -> None:
    """Of a producer with another partitioner: the one in her own partition is shown, the other is named."""
    store = MemoryStore(LAYOUT.dtype, 3)
    for partition in range(2):
        await filled(store, partition)
    async with face(store) as address:
        _, body = await get(address + "/v1/customers/ann")
        found = json.loads(body)
        home = partition_for(b"ann", 3)
        shown = home if home < 2 else 0
        assert found["partition"] == shown
        (other,) = found["other_records"]
        assert other["partition"] == 1 - shown and other["last_seen"] == found["state"]["last_seen"]


async def test_of_all_who_ask_one_is_at_the_model() -> None:
    """Its thread takes calls in order: sixty asked at once must not be sixty calls ahead of the next dispatch."""
    store, model = MemoryStore(LAYOUT.dtype, 1), ArithmeticModel()
    await filled(store)
    now = most = 0

    async def ask(rows: Rows, as_of: NDArray[np.int64]) -> Asked:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return await answering(model)(rows, as_of)

    customers = Customers(LAYOUT, store, ask, ManualClock(T0 + 10 * DAY_MS))
    served = HttpServer(HttpSettings(port=0), customers.routes())
    address = await served.start()
    try:
        found = await asyncio.gather(*(raw(address, asking("/v1/customers/ann")) for _ in range(30)))
    finally:
        await served.stop()
    assert [status for status, _, _ in found] == [200] * 30
    assert most == 1


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
            ("/v1/at-risk?target=buying", 400, "target is one of activity"),
            ("/v1/at-risk?target=a%0d%0ab", 400, "target is one of activity"),
            ("/v1/at-risk?limit=0", 400, "limit is 1 to"),
            ("/v1/at-risk?min_p=nan", 400, "min_p is 0 to 1"),
            ("/v1/at-risk?sort=age", 400, "sort is p or value"),
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


async def test_a_scorer_that_hangs_fails_liveness_and_says_so() -> None:
    async with face(MemoryStore(LAYOUT.dtype, 1), stuck="the model has not answered for 301 s") as address:
        status, body = await get(address + "/healthz")
        assert (status, json.loads(body)) == (
            503, {"status": "hangs", "reason": "the model has not answered for 301 s"},
        )  # fmt: skip
        assert (await get(address + "/readyz"))[0] == 200


async def test_metrics_are_prometheus_and_leave_with_their_partition() -> None:
    metrics = Metrics()
    metrics.assigned(frozenset({0, 1}))
    for partition in (0, 1):
        metrics.turn_done(
            TurnDone(
                pieces=[PieceDone(partition, 10, 10, 2, 5)], records=10, events=8, late=0, duplicates=1,
                behind_watermark=0, misplaced=0, rejected={"not_json": 2}, ignored=0, tombstones=0, forgotten=0,
                points={"event": 3}, held={}, seconds={"fold": 0.001}, latency_s=0.02,
                sent=[AlertSent("opened", "high", "event", 0.8, 3, partition, 9, 0.03, 1.5)],
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
        assert found["ebbtide_alerts_total", "high", "opened"] == 2
        assert found["ebbtide_alerts_total", "high", "corrected"] == 0
        assert found["ebbtide_dispatches_total", "idle", "3"] == 1
        assert found["ebbtide_dispatch_padding_rows_total",] == 3
        assert found["ebbtide_partition_lag_records", "1"] == 5
        metrics.assigned(frozenset({0}))
        _, body = await get(address + "/metrics")
        assert 'ebbtide_partition_position{partition="0"}' in body
        assert 'ebbtide_partition_position{partition="1"}' not in body
        assert "ann" not in body


async def test_the_token_is_demanded_unless_the_path_is_public() -> None:
    """Also where nothing is: who has no token does not learn what there is."""
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    async with face(store, token="s3cret") as address:
        paths = (
            "/v1", "/v1/", "/v1/customers/ann", "/v1/customers/", "/v1/nothing", "/%761/customers/ann",
            "//v1/customers/ann", "/v1/../v1/customers/ann", "/healthz/../v1/customers/ann", "/nowhere", "/healthz/",
            "/metrics%2f",
        )  # fmt: skip
        for path in paths:
            status, body, head = await raw(address, asking(path))
            assert status == 401, path
            assert body == {"error": "a bearer token is needed"} and "WWW-Authenticate: Bearer" in head
        for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS"):
            status, _, _ = await raw(address, asking("/v1/customers/ann").replace(b"GET", method, 1))
            assert status == 401, method
        ok = "Authorization: Bearer s3cret"
        assert (await raw(address, asking("/nowhere", ok)))[0] == 404
        assert (await raw(address, asking("/v1/customers/ann", ok, host="any.example")))[0] == 200


async def test_a_malformed_token_is_no_token() -> None:
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    async with face(store, token="s3cret") as address:
        for given in (
            b"s3cret", b"Bearer", b"Bearer ", b"Bearer s3cre", b"Bearer s3crets", b"Bearer S3cret", b"Basic s3cret",
            b"Basic Ojpzb21l", b"Bearer s3cret x", b"Bearer s3cret, Bearer s3cret", b"Bearer \xff\xfe", b"\xff",
            "Bearer ü".encode(), b"Bearers3cret", b"Bearer " + b"x" * 8000, b"", b"null", b'Bearer "s3cret"',
        ):  # fmt: skip
            assert (await raw(address, asking("/v1/customers/ann", b"Authorization: " + given)))[0] == 401, (
                given
            )
        twice = asking("/v1/customers/ann", "Authorization: Bearer s3cret", "Authorization: Bearer wrong")
        assert (await raw(address, twice))[0] in (400, 401)
        for given in (b"Bearer s3cret", b"bearer s3cret", b"Bearer   s3cret  "):
            assert (await raw(address, asking("/v1/customers/ann", b"authorization: " + given)))[0] == 200, (
                given
            )


async def test_odd_ids_are_refused_or_unknown_and_never_an_error() -> None:
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    async with face(store) as address:
        for who, status in (
            ("%61nn", 200), ("a%2Fb", 404), ("%00", 404), ("..%2f..%2fetc", 404), ("%0d%0aX: y", 400), ("*", 404),
            ("%F0%9F%98%80" * 128, 404), ("%F0%9F%98%80" * 129, 400), ("x" * 128, 404), ("x" * 129, 400),
            ("%7Bp0%7D:head", 404), ("%", 404), ("%zz", 404), ("a%20b", 404), ("%EF%BF%BF", 404),
            ("ann?", 200), ("ann#x", 200),
        ):  # fmt: skip
            got, body, _ = await raw(address, asking(f"/v1/customers/{who}".replace(" ", "")))
            assert got == status or (status == 400 and got == 404), (who, got)
            assert got == 200 or body["error"]
        for broken in (
            b"\xff\xfe",
            b"%ED%A0%80",
            b"%FF",
            b"\xed\xa0\x80",
            b"%C3",
            b"a\x00b",
            b"a b",
            b"a\tb",
        ):
            got, body, _ = await raw(address, asking(b"/v1/customers/" + broken))
            assert got in (400, 404), (broken, got)
            assert body["error"]


async def test_odd_times_are_refused_and_never_an_error() -> None:
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    async with face(store) as address:
        for text in (
            "", "-1", "0", "%20", "9" * 3000, "%D9%A1", "%C2%B2", "1e18", "NaN", "inf", "253402300800000", "0001-01-01",
            "9999-12-31T23:59:59.999999-23:59", "0001-01-01T00:00:00%2B23:59", "2023-02-30", "NOW", "now%00", "%FF",
            "-inf",
            "253402300799999.5", "20240230", "2024-W54-1", "%ED%A0%80",
        ):  # fmt: skip
            got, body, _ = await raw(address, asking(f"/v1/customers/ann?as_of={text}"))
            assert got == 400, (text, got, body)
            assert "as_of" in body["error"]
        last = "253402300799999"
        for text in (
            last,
            "9999-12-31T23:59:59.999Z",
            "2100-01-01",
            f"{T0 + 3 * DAY_MS}",
            f"{last}&as_of=soon",
        ):
            got, body, _ = await raw(address, asking(f"/v1/customers/ann?as_of={text}"))
            assert got == 200, (text, body)
            json.dumps(body, allow_nan=False)


async def test_what_is_no_http_is_refused_in_json_and_quoted_nowhere() -> None:
    with capture_logs() as logs:
        async with face(MemoryStore(LAYOUT.dtype, 1), bounds=Bounds(idle_s_max=0.3, linger_s=0.1)) as address:
            for garbage in (
                b"\x16\x03\x01\x02\x00c-4711\r\n\r\n", b"GET\r\n\r\n", b"GET /c-4711 HTTP/9.9\r\nHost: x\r\n\r\n",
                b"c-4711 / HTTP/1.1\r\n\r\n", b"\r\n" * 3 + b"c-4711\r\n\r\n", b"GET / HTTP/1.1\r\nc-4711\r\n\r\n",
                asking("/" + "c-4711" * 800), asking("/", "X: " + "c-4711" * 2000), asking("/", *["c-4711: y"] * 100),
                asking("/", "Content-Length: c-4711"), asking("/", "Content-Length: -1"), asking("/\x01c-4711"),
                asking("/", "Content-Length: 3", "Transfer-Encoding: chunked"), asking("/", "Host: c-4711"),
                asking("/", "Expect: c-4711"), asking("/", b"Expect: 100-c-4711\xef"),
                asking("/", "Transfer-Encoding: chunked") + b"zz c-4711\r\n",
            ):  # fmt: skip
                status, body, head = await raw(address, garbage)
                unfinished = (
                    b"Content-Length: 3" in garbage and status == 0
                )  # cut: no answer to what may be a trick
                assert status in (400, 404, 417) or unfinished, (garbage[:50], status)
                if status:
                    assert "c-4711" not in json.dumps(body) + head and "application/json" in head
                    assert "aiohttp" not in head and "Python" not in head
            assert (await get(address + "/healthz"))[0] == 200
    assert "c-4711" not in str([vars(record) for record in logs])


async def test_what_is_away_is_503_and_says_when_to_come_again() -> None:
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    cases = (
        ({"store": AwayStore(LAYOUT.dtype, 1)}, 503, "the store does not answer"),
        ({"trouble": ScorerUnavailable("the model failed on c-4711")}, 503, "the model does not answer"),
        ({"hangs": True, "bounds": Bounds(answer_s_max=0.1)}, 503, "no answer within 0.1 s"),
        ({"trouble": KeyError("c-4711 at 10.0.0.1")}, 500, "an error of ours"),
        ({"trouble": StoreMisconfigured("Redis at 10.0.0.1:6379: NOAUTH")}, 500, "an error of ours"),
    )  # fmt: skip
    with capture_logs() as logs:
        for how, expected, words in cases:
            async with face(**{"store": store, **how}) as address:  # type: ignore[arg-type]  # the table's own types
                status, body, head = await raw(address, asking("/v1/customers/ann"))
                assert (status, body) == (expected, {"error": words})
                assert ("Retry-After: 5" in head) == (status == 503)
                assert (await get(address + "/healthz"))[0] == 200
    assert "c-4711" not in str([vars(record) for record in logs])
    ours = [record for record in logs if record.name == "ebbtide.ops.http.server"]
    assert [vars(record)["reason"] for record in ours] == ["KeyError", "StoreMisconfigured"]


async def test_a_page_of_another_host_reaches_nobody() -> None:
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    async with face(store) as address:
        for host in ("evil.example", "127.0.0.1.evil.example:80", "localhost.evil", "10.0.0.1", ""):
            assert (await raw(address, asking("/v1/customers/ann", host=host)))[0] in (400, 403), host
            assert (await raw(address, asking("/healthz", host=host)))[0] in (200, 400)
        for host in ("localhost", "LOCALHOST:80", "127.0.0.2:1", "[::1]:8080"):
            assert (await raw(address, asking("/v1/customers/ann", host=host)))[0] == 200, host
        assert (await raw(address, b"GET /v1/customers/ann HTTP/1.0\r\n\r\n"))[0] == 200


async def test_an_open_address_without_a_token_serves_no_customer() -> None:
    """It says so at the start, and to whoever asks; health and metrics are served all the same."""
    assert HttpSettings().host == "127.0.0.1"
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    for host, token, closed in (
        ("127.0.0.1", None, False), ("localhost", None, False), ("0.0.0.0", None, True), ("0.0.0.0", "s3cret", False),
    ):  # fmt: skip
        with capture_logs() as logs:
            async with face(store, host=host, token=token) as address:
                bearer = [f"Authorization: Bearer {token}"] if token else []
                status, body, _ = await raw(address, asking("/v1/customers/ann", *bearer))
                assert status == (403 if closed else 200), (host, token)
                assert not closed or "http.token" in body["error"]
                assert (await raw(address, asking("/nowhere", *bearer)))[0] == (403 if closed else 404)
                for path in ("/healthz", "/readyz", "/metrics"):
                    assert (await get(address + path))[0] == 200
        assert [r.closed for r in logs if r.levelname == "WARNING"] == ["/v1"] * closed  # type: ignore[attr-defined]  # from extra
