"""Asking a Redis server: connections, scripts, and what each refusal means for the caller.

This module knows how a command reaches the server and that a refusal is one of two things: worth a retry
(StoreUnavailable: away, loading, busy, full, a replica for now), or something an operator must change
(StoreMisconfigured: password, rights, TLS, not a Redis at all). It refuses to know keys. It is the only importer of
`redis`; no error it raises quotes a key or the URL, since they hold customers and the password.

Nothing here retries: an owner who gets StoreUnavailable backs off by itself, and knows that it did.
"""

import hashlib
import ssl
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple, Self

import hiredis
from redis import exceptions as refused
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from featurestore.errors import StoreError, StoreMisconfigured, StoreUnavailable

SETTING = "EBBTIDE_REDIS_URL"
LONG_COMMAND = 32  # arguments from which packing in C pays

_DENIED = (
    refused.AuthenticationError,
    refused.AuthorizationError,
    refused.AuthenticationWrongNumberOfArgsError,
    refused.NoPermissionError,
)
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
_RETRY_WORDS = ("BUSY", "MISCONF", "NOREPLICAS", "NOSCRIPT")  # errors that have no class of their own


class Script(NamedTuple):
    """A Lua script and its SHA-1, the name under which the server keeps it."""

    source: str
    sha: str

    @classmethod
    def read(cls, name: str) -> Self:
        """The script in this package's file `name`."""
        source = resources.files("featurestore").joinpath(name).read_text(encoding="utf-8")
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class _PackInC:
    """Beside a connection class: long commands, of thousands of keys and records, are packed by hiredis.

    redis-py does that in its synchronous client only; in the asynchronous one it takes three times as long.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        if len(args) < LONG_COMMAND:
            packed: list[bytes] = super().pack_command(*args)  # type: ignore[misc]  # of the class beside this one
            return packed
        return [hiredis.pack_command(args)]


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
        options = {**ours, **parse_url(url), **always}  # what the URL says itself wins over `ours`
        kind = options.pop("connection_class", Connection)  # another for TLS, another for unix sockets
        packing = type(kind.__name__, (_PackInC, kind), {})
        return Redis.from_pool(BlockingConnectionPool(connection_class=packing, **options))
    except ValueError as error:  # its text is not repeated: it may hold the URL, and that the password
        hint = f"set {SETTING} to redis://, rediss:// (TLS) or unix://, as in redis://user:password@host:6379"
        raise StoreMisconfigured("the Redis URL cannot be understood", hint=hint) from error


class RedisClient:
    """At most `connections_max` connections, opened as needed; `timeout_s` for each wait. `where` is for messages.

    Raises StoreMisconfigured for a URL that cannot be understood. Every question raises StoreUnavailable or
    StoreMisconfigured.
    """

    def __init__(self, url: str, *, timeout_s: float, connections_max: int) -> None:
        # redis-py's own types describe its synchronous and asynchronous clients at once: no help here.
        self._client: Any = _connect(url, timeout_s, connections_max)
        place = self._client.connection_pool.connection_kwargs
        self.where = place.get("path") or f"{place.get('host', 'localhost')}:{place.get('port', 6379)}"

    async def ask(self, *command: Any) -> Any:
        """The reply to one command."""
        try:
            return await self._client.execute_command(*command)
        except (refused.RedisError, OSError) as error:
            raise self._explain(error) from error

    async def ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies to all commands, in one round trip, not as a transaction. The first refusal is raised."""
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

    async def run(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        """The reply of `script`."""
        call = (len(keys), *keys, *args)
        try:
            return await self._client.execute_command("EVALSHA", script.sha, *call)
        except refused.NoScriptError:  # a new server, or one whose script cache was flushed; nothing has run
            return await self.ask("EVAL", script.source, *call)
        except (refused.RedisError, OSError) as error:
            raise self._explain(error) from error

    async def close(self) -> None:
        await self._client.aclose()

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
