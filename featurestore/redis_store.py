"""The store in Redis or Valkey: five kinds of keys a partition, and one script that moves them together.

    {prefix}{topic}:{p7}:head           string  where the partition is, in words (`Head.text`)
    {prefix}{topic}:{p7}:c:<customer>   string  the record, its bytes as they lie in memory
    {prefix}{topic}:{p7}:due            zset    customer → ms UTC, one entry for each record
    {prefix}{topic}:{p7}:out            hash    alert id → alert bytes, until Kafka has acknowledged them

The braces are a hash tag: all keys of a partition live in one slot, so one script may change them together on a
Cluster, too. `apply.lua` holds the atomicity argument. This module knows keys, commands and what each refusal of the
server means for the caller; it refuses to know what the bytes mean. It is the only importer of `redis`.

Nothing here retries: an owner who gets StoreUnavailable backs off by itself, and knows that it did. No key has a
TTL, and a server that evicts is refused, since either would change state behind the fence. Needs Redis 7.0 or Valkey,
and of an ACL user `~{prefix}{topic}:* +@read +@write +eval +evalsha +info` (`+memory` for reports).
"""

import hashlib
import ssl
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from redis import exceptions as refused
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from featurestore.errors import Fenced, LayoutError, StoreError, StoreMisconfigured, StoreUnavailable
from featurestore.store import CUSTOMERS_MAX, RESETTING, Head, Rows, Step, check_count, join_records, pages

SETTING = "EBBTIDE_REDIS_URL"
VERSION_MIN = (7, 0)  # the first whose scripts declare flags and are refused as a whole
# Each partition has one command under way at a time; 16 let as many partitions of a worker wait at once.
CONNECTIONS_MAX = 16
# A script of CUSTOMERS_MAX customers takes about 10 ms; behind 16 others still well below a second.
TIMEOUT_S = 5.0
DUE_SAMPLES = 100  # entries of the sorted set that a memory report looks at

_RETRY = (
    refused.ConnectionError,
    refused.TimeoutError,
    refused.ReadOnlyError,
    refused.OutOfMemoryError,
    refused.ClusterDownError,
    refused.MasterDownError,
    refused.TryAgainError,
    OSError,
)
_RETRY_WORDS = ("BUSY", "MISCONF", "NOREPLICAS", "NOSCRIPT")
_DENIED = (
    refused.AuthenticationError,
    refused.AuthorizationError,
    refused.AuthenticationWrongNumberOfArgsError,
    refused.NoPermissionError,
)


class MemoryUsage(NamedTuple):
    """Bytes that the server spends. `records`: int64[n], key, value and table entry of each customer asked for (0 when
    absent). `due`: an estimated entry of the sorted set, the same for everyone."""

    records: NDArray[np.int64]
    due: float


class _Script(NamedTuple):
    source: str
    sha: str


def _script(name: str) -> _Script:
    source = resources.files("featurestore").joinpath(name).read_text(encoding="utf-8")
    return _Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _connect(url: str, timeout_s: float, connections_max: int) -> Redis:
    """The client for a URL. Only one server so far: a Cluster's or Sentinel's client would be made here."""
    ours: dict[str, Any] = {
        "max_connections": connections_max,
        "timeout": timeout_s,  # for a free connection
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }
    # Under protocol 3 redis-py (8.1) doesn't notice that the server has closed an idle connection.
    always = {"decode_responses": False, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
    try:
        # What the URL's own options say wins over `ours`.
        return Redis.from_pool(BlockingConnectionPool(**{**ours, **parse_url(url), **always}))
    except ValueError as error:  # its text is not repeated: it may hold the URL, and that the password
        hint = f"set {SETTING} to redis://, rediss:// (TLS) or unix://, as in redis://user:password@host:6379"
        raise StoreMisconfigured("the Redis URL cannot be understood", hint=hint) from error


class RedisStore:
    """A `Store` (see there for each method) for the partitions of one topic. `dtype` is that of a record.

    Raises StoreMisconfigured for a URL that cannot be understood; connects on the first question.
    """

    def __init__(
        self,
        url: str,
        dtype: np.dtype[Any],
        topic: str,
        partitions: int,
        *,
        prefix: str = "",
        timeout_s: float = TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        if {"{", "}"} & {*prefix, *topic}:
            raise StoreMisconfigured(f"prefix {prefix!r} and topic {topic!r} must not contain braces")
        self.dtype = dtype
        self.partitions = partitions
        # redis-py's own types describe its synchronous and asynchronous clients at once: no help here.
        self._client: Any = _connect(url, timeout_s, connections_max)
        place = self._client.connection_pool.connection_kwargs
        self.where = place.get("path") or f"{place.get('host', 'localhost')}:{place.get('port', 6379)}"
        self._tags = [f"{prefix}{topic}:{{p{partition}}}:" for partition in range(partitions)]
        self._apply, self._reset = _script("apply.lua"), _script("reset.lua")

    async def start(self) -> None:
        info = await self._ask("INFO")
        version = str(info.get("redis_version", "0"))
        if tuple(map(int, version.split(".")[:2])) < VERSION_MIN:
            raise StoreMisconfigured(f"{self.where} is Redis {version}", hint="7.0 or later, or Valkey")
        if info.get("cluster_enabled"):
            raise StoreMisconfigured(
                f"{self.where} is a node of a Redis Cluster, which is not supported yet",
                hint=f"let {SETTING} name a single server",
            )
        policy = info.get("maxmemory_policy", "unknown")
        if policy != "noeviction":
            raise StoreMisconfigured(
                f"{self.where} has maxmemory-policy {policy} and would drop customers' state when memory is full",
                hint="set `maxmemory-policy noeviction`, or give us a server of our own",
            )

    async def head(self, partition: int) -> Head | None:
        text = await self._ask("GET", self._tags[partition] + "head")
        if text is None:
            return None
        try:
            return Head.parse(text.decode(errors="replace"))
        except LayoutError as error:
            said = f"partition {partition} at {self.where}: {error.args[0]}"
            raise LayoutError(said, hint=error.hint) from error

    async def load(self, partition: int, customers: Sequence[str]) -> tuple[Rows, NDArray[np.bool_]]:
        check_count(customers)
        record = self._tags[partition] + "c:"
        keys = [record + customer for customer in customers]
        return join_records(await self._ask("MGET", *keys) if keys else [], self.dtype, partition)

    async def apply(self, step: Step) -> None:
        step.check(self.dtype)
        record = self._tags[step.partition] + "c:"
        size = self.dtype.itemsize
        blob = step.rows.tobytes()
        found = await self._run(
            self._apply,
            step.partition,
            [record + customer for names in (step.customers, step.forgotten) for customer in names],
            [
                step.expected.text() if step.expected else "",
                step.head.text(),
                len(record.encode()) + 1,  # Lua counts bytes, from 1
                len(step.customers),
                len(step.alerts),
                len(step.acked),
                *step.due.tolist(),
                *(blob[at : at + size] for at in range(0, len(blob), size)),
                *(part for alert in step.alerts for part in alert),
                *step.acked,
            ],
        )
        if found:
            expected = step.expected.text() if step.expected else "not begun"
            at = found[0].decode(errors="replace") or "not begun"
            raise Fenced(f"partition {step.partition} is at [{at}], this owner expected [{expected}]")

    async def outbox(self, partition: int) -> dict[bytes, bytes]:
        alerts: dict[bytes, bytes] = await self._ask("HGETALL", self._tags[partition] + "out")
        return alerts

    async def due(
        self, partition: int, until_ms: int, customers_max: int
    ) -> tuple[list[str], NDArray[np.int64]]:
        order = ("BYSCORE", "LIMIT", 0, customers_max, "WITHSCORES")
        reply = await self._ask("ZRANGE", self._tags[partition] + "due", "-inf", f"({until_ms}", *order)
        times = np.fromiter(map(float, reply[1::2]), np.float64, len(reply) // 2)
        return [name.decode() for name in reply[::2]], times.astype(np.int64)

    async def find(self, customer: str) -> tuple[int, np.void] | None:
        values = await self._ask_all([("GET", f"{tag}c:{customer}") for tag in self._tags])
        for partition, value in enumerate(values):
            if value is not None:
                rows, _ = join_records([value], self.dtype, partition)
                return partition, rows[0]
        return None

    async def scan(self, partition: int) -> AsyncIterator[tuple[list[str], Rows]]:
        # ZSCAN returns at least once whoever stays; `seen` makes it exactly once.
        seen: set[str] = set()
        cursor = -1
        while cursor:
            due = self._tags[partition] + "due"
            cursor, entries = await self._ask("ZSCAN", due, max(cursor, 0), "COUNT", CUSTOMERS_MAX)
            names = {name.decode() for name, _ in entries} - seen
            seen |= names
            for page in pages(names):
                rows, found = await self.load(partition, page)
                yield [name for name, there in zip(page, found, strict=True) if there], rows[found]

    async def reset(self, partition: int) -> None:
        tag = self._tags[partition]
        await self._run(self._reset, partition, [], [RESETTING, "begin"])
        while names := await self._ask("ZRANGE", tag + "due", 0, CUSTOMERS_MAX - 1):
            keys = [tag.encode() + b"c:" + name for name in names]
            await self._reset_page(partition, keys, ["page", *names])
        await self._reset_page(partition, [], ["end"])

    async def _reset_page(self, partition: int, keys: list[bytes], args: list[str | bytes]) -> None:
        if await self._run(self._reset, partition, keys, [RESETTING, *args]):
            raise Fenced(f"partition {partition}: somebody else finished this reset")

    async def memory_usage(self, partition: int, customers: Sequence[str]) -> MemoryUsage:
        """What these customers (at most CUSTOMERS_MAX) cost the server, for reports. Not part of `Store`."""
        check_count(customers)
        tag = self._tags[partition]
        of_records = [("MEMORY USAGE", f"{tag}c:{customer}") for customer in customers]
        of_due = [("MEMORY USAGE", tag + "due", "SAMPLES", DUE_SAMPLES), ("ZCARD", tag + "due")]
        *records, due, entries = await self._ask_all([*of_records, *of_due])
        return MemoryUsage(np.array([used or 0 for used in records], np.int64), (due or 0) / max(entries, 1))

    async def close(self) -> None:
        await self._client.aclose()

    async def _run(
        self, script: _Script, partition: int, records: Sequence[str | bytes], args: Sequence[Any]
    ) -> list[bytes]:
        tag = self._tags[partition]
        call = (3 + len(records), tag + "head", tag + "due", tag + "out", *records, *args)
        reply: list[bytes]
        try:
            reply = await self._ask("EVALSHA", script.sha, *call)
        except refused.NoScriptError:  # a new server, or one whose script cache was flushed; nothing has run
            reply = await self._ask("EVAL", script.source, *call)
        return reply

    async def _ask(self, *command: Any) -> Any:
        try:
            return await self._client.execute_command(*command)
        except refused.NoScriptError:
            raise
        except (refused.RedisError, OSError) as error:
            raise self._explain(error) from error

    async def _ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            # Not raised by the pipeline, whose message would quote the key, and with it the customer.
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        except (refused.RedisError, OSError) as error:
            raise self._explain(error) from error
        for reply in replies:
            if isinstance(reply, refused.RedisError):
                raise self._explain(reply) from reply
        return replies

    def _explain(self, error: Exception) -> StoreError:
        """What a refusal means for the caller: retry, or stop and tell the operator."""
        said = f"Redis at {self.where}: {error}"
        cause: BaseException | None = error
        while cause:
            if isinstance(cause, ssl.SSLError):
                hint = (
                    f"rediss:// in {SETTING} needs a TLS port and a trusted certificate, ?ssl_ca_certs=FILE"
                )
                return StoreMisconfigured(said, hint=hint)
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, _DENIED):
            return StoreMisconfigured(said, hint=f"check user and password in {SETTING}, and the user's ACL")
        if isinstance(error, refused.OutOfMemoryError):
            return StoreUnavailable(said, hint="raise the server's maxmemory; nothing was lost")
        if isinstance(error, _RETRY) or str(error).startswith(_RETRY_WORDS):
            return StoreUnavailable(said, hint=f"is it running, and does {SETTING} name it?")
        return StoreMisconfigured(said, hint=f"check that {SETTING} names a Redis of our own, 7.0 or later")
