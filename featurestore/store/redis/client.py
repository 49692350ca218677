"""Asking Redis: connections, scripts, and who is to be asked, be it one server, a Cluster or a master with Sentinels.

Of keys it knows that a command's first one says where it goes. `url` reads the URL, `cluster` finds the node,
`sentinel` the master, `errors` says what a refusal means; these five are the only importers of `redis`. No error
quotes a key, since keys hold customers.

Nothing here retries: an owner who gets StoreUnavailable backs off by itself, and knows that it did. What a retry needs
is done before the error is raised: after the word of a server that is no master (any more), every connection to it is
given up. Behind a virtual address, a Kubernetes Service or a managed endpoint the old connections would stay with the
demoted master for as long as it lives.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from importlib import resources
from typing import Any, NamedTuple, Self

import hiredis
from redis import exceptions as refused
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.store.outcomes import promised
from ebbtide.featurestore.store.redis.cluster import Cluster
from ebbtide.featurestore.store.redis.credentials import Credentials
from ebbtide.featurestore.store.redis.errors import NOT_THE_MASTER, Refusals, close_all
from ebbtide.featurestore.store.redis.round_trip import round_trip
from ebbtide.featurestore.store.redis.sentinel import watched_pool
from ebbtide.featurestore.store.redis.url import Address, RedisTarget, read_url

LONG_COMMAND = 32  # arguments from which packing in C pays


class Script(NamedTuple):
    """A Lua script and its SHA-1, the name under which the server keeps it."""

    source: str
    sha: str

    @classmethod
    def read(cls, name: str) -> Self:
        """The script in this package's file `name`."""
        source = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class Question(NamedTuple):
    """One of several that go out together. `key` says where to; `read` makes the answer of the reply, and may raise an
    EbbtideError.

    With a script, `command` is what follows its name: the number of keys, the keys, the arguments.
    """

    key: str | bytes
    command: Sequence[Any]
    read: Callable[[Any], Any]
    script: Script | None = None

    @property
    def by_name(self) -> Sequence[Any]:
        """The command, the script by its SHA-1."""
        return ("EVALSHA", self.script.sha, *self.command) if self.script else self.command

    @property
    def in_full(self) -> Sequence[Any]:
        """The command, the script with its source, for a server that does not know it."""
        return ("EVAL", self.script.source, *self.command) if self.script else self.command


class _PackInC:
    """Beside a connection class: long commands, of thousands of keys and records, are packed by hiredis.

    redis-py does that in its synchronous client only; in the asynchronous one it takes three times as long.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        if len(args) < LONG_COMMAND:
            packed: list[bytes] = super().pack_command(*args)  # type: ignore[misc]  # of the class beside this one
            return packed
        return [hiredis.pack_command(args)]


def _packing(kind: type[Any]) -> type[Any]:
    return type(kind.__name__, (_PackInC, kind), {})


class _Master:
    """One server: the URL's, or the one that the Sentinels call the master. The same questions as a `Cluster`."""

    def __init__(self, place: RedisTarget, refusals: Refusals) -> None:
        if place.topology == "sentinel":
            pool, self._sentinel = watched_pool(place, _packing, refusals)
        else:
            kind = _packing(place.connection)
            pool, self._sentinel = BlockingConnectionPool(connection_class=kind, **place.options), None
        # redis-py's own types describe its synchronous and asynchronous clients at once: no help here.
        self._client: Any = Redis.from_pool(pool)
        self._where = place.where

    async def ask(self, _key: str | bytes, command: Sequence[Any]) -> Any:
        return await self._heeded(self._client.execute_command(*command))

    async def ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        # Not raised by the pipeline, whose message would quote the key, and with it the customer.
        replies: list[Any] = await self._heeded(pipeline.execute(raise_on_error=False))
        return replies

    def groups(self, keys: Sequence[str | bytes]) -> list[list[int]]:
        return [list(range(len(keys)))]

    async def ask_group(self, _keys: Sequence[str | bytes], commands: Sequence[Sequence[Any]]) -> list[Any]:
        replies: list[Any] = await self._heeded(round_trip(self._client.connection_pool, commands))
        return replies

    async def _heeded(self, question: Awaitable[Any]) -> Any:
        """The answer to a question; when it is the word of a server that is no master, its connections are left."""
        try:
            answer = await question
        except NOT_THE_MASTER:
            await self._disconnect()
            raise
        if isinstance(answer, list) and any(isinstance(reply, NOT_THE_MASTER) for reply in answer):
            await self._disconnect()
        return answer

    async def _disconnect(self) -> None:
        """Idle connections now, those in use when they are given back: a question under way is left its answer."""
        pool = self._client.connection_pool
        await pool.update_active_connections_for_reconnect()
        with suppress(refused.RedisError, OSError):  # over TLS, of a server that says no goodbye
            await pool.disconnect(inuse_connections=False)

    async def infos(self) -> list[tuple[str, Any]]:
        return [(self._where, await self._client.execute_command("INFO"))]

    async def close(self) -> None:
        await close_all(self._client, *([self._sentinel] if self._sentinel is not None else []))


class RedisClient:
    """At most `connections_max` connections to each server, opened as needed. `where` is for messages;
    `cluster` says whether it is a Cluster.

    `timeout_s` bounds each wait for one server; with a Cluster or Sentinels, a question as a whole, redirections and
    the search for the server included. Raises StoreMisconfigured for a URL that cannot be understood. Every question
    raises StoreUnavailable or StoreMisconfigured.
    """

    def __init__(
        self, url: str, credentials: Credentials | None = None, *, timeout_s: float, connections_max: int
    ) -> None:
        ours: dict[str, Any] = {
            "max_connections": connections_max,
            "timeout": timeout_s,  # for a free connection
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
        }
        # Under protocol 3 redis-py (8.1) doesn't notice that the server has closed an idle connection.
        always = {"decode_responses": False, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
        place = read_url(url, credentials or Credentials(), ours, always)
        self.where = place.where
        self._refusals = Refusals(place.where)
        self.cluster = place.topology == "cluster"
        self._timeout_s = timeout_s
        self._limit_s = None if place.topology == "server" else timeout_s
        self._asking: set[asyncio.Task[None]] = set()
        self._servers: _Master | Cluster
        if self.cluster:
            kind = _packing(place.connection)

            def open_node(address: Address) -> Any:
                options = {**place.options, "host": address[0], "port": address[1]}
                return Redis.from_pool(BlockingConnectionPool(connection_class=kind, **options))

            self._servers = Cluster(place.hosts, open_node, timeout_s, self._refusals)
        else:
            self._servers = _Master(place, self._refusals)

    async def ask(self, *command: Any) -> Any:
        """The reply to one command, whose second word is its first key."""
        return await self._asked(self._servers.ask(command[1], command))

    async def ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies to all commands, in one round trip to each server, not as a transaction.

        Each has one key, as its second word. The first refusal is raised.
        """
        replies: list[Any] = await self._asked(self._servers.ask_all(commands))
        for reply in replies:
            if isinstance(reply, refused.RedisError):
                raise self._refusals.explain(reply) from reply
        return replies

    async def run(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        """The reply of `script`. All keys lie in one slot."""
        return await self._asked(self._run(script, keys, args))

    def ask_each(self, questions: Sequence[Question]) -> list[asyncio.Future[Any]]:
        """All questions at once, in one round trip to each server; a future answer to each, in their order.

        What one server answers comes together, and does not wait for another server. A future that is given up stays
        asked: what it wrote is written. `timeout_s` bounds what one server is asked as a whole.
        """
        loop = asyncio.get_running_loop()
        futures = [promised() for _ in questions]
        for group in self._servers.groups([question.key for question in questions]):
            asking = loop.create_task(
                self._answer([questions[i] for i in group], [futures[i] for i in group])
            )
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        return futures

    async def _answer(self, questions: Sequence[Question], futures: Sequence[asyncio.Future[Any]]) -> None:
        """Have one group of questions answered, whatever happens."""
        try:
            replies = await self._replies(questions)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        for question, reply, future in zip(questions, replies, futures, strict=True):
            if future.done():
                continue  # given up
            if isinstance(reply, Exception):
                future.set_exception(self._refusals.explain(reply))
                continue
            try:
                future.set_result(question.read(reply))
            except EbbtideError as error:
                future.set_exception(error)

    async def _replies(self, questions: Sequence[Question]) -> list[Any]:
        """The replies of one group, refusals among them. A server that does not know the script is told it."""
        keys = [question.key for question in questions]
        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await self._servers.ask_group(keys, [question.by_name for question in questions])
                unknown = [i for i, reply in enumerate(replies) if isinstance(reply, refused.NoScriptError)]
                if unknown:
                    again = await self._servers.ask_group(
                        [keys[i] for i in unknown], [questions[i].in_full for i in unknown]
                    )
                    for i, reply in zip(unknown, again, strict=True):
                        replies[i] = reply
        except (refused.RedisError, OSError) as error:
            return [error] * len(questions)
        self._refusals.answered = True
        return replies

    async def infos(self) -> list[tuple[str, dict[str, Any]]]:
        """Address and INFO of every server that takes writes."""
        found: list[tuple[str, dict[str, Any]]] = await self._asked(self._servers.infos())
        return found

    async def close(self) -> None:
        """Give the connections up. Raises nothing, and takes one timeout at most when a server hangs."""
        for asking in self._asking:
            asking.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self._servers.close()

    async def _run(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        call = (len(keys), *keys, *args)
        try:
            return await self._servers.ask(keys[0], ("EVALSHA", script.sha, *call))
        except refused.NoScriptError:  # a new server, or one whose script cache was flushed; nothing has run
            return await self._servers.ask(keys[0], ("EVAL", script.source, *call))

    async def _asked(self, question: Awaitable[Any]) -> Any:
        """What `question` comes to, in time, or a StoreError."""
        try:
            async with asyncio.timeout(self._limit_s):
                reply = await question
        except (refused.RedisError, OSError) as error:
            raise self._refusals.explain(error) from error
        self._refusals.answered = True
        return reply
