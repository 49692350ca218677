"""The way out: messages acknowledged by all replicas, each of them once, whatever the network does meanwhile.

It knows aiokafka's producer, which sends again by itself for as long as a broker is away, and which cannot be told to
stop doing so; it refuses to know what a message says. The invariants:

- Whatever happens, a call ends in time with an answer, and what is held stays within a batch or two a partition.
- What a call did not see acknowledged is sent by nobody afterwards: a producer that was refused something (a gap in its
  sequence numbers), did not answer in time, or holds messages of whoever is cancelled or revoked, is given up, with its
  connections. Delivered later it could lie behind a tombstone that another owner has passed on since. What remains are
  the bytes that have left this machine already.
- Given up it ends, also when no broker is there.
"""

# ruff: noqa: SLF001 -- a producer cannot be ended by anything that is public while it has messages to send

import asyncio
import socket
import struct
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Self
from weakref import WeakSet

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.errors import KafkaConnectionError, KafkaError

from ebbtide.stream.ending import closed
from ebbtide.stream.errors import RecordTooLarge
from ebbtide.stream.kafka.diagnose import require_metadata, unreachable
from ebbtide.stream.kafka.errors import failure
from ebbtide.stream.kafka.settings import KafkaSettings, ms
from ebbtide.stream.outputs.message import AtLeastOnce, Message

TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
FLUSH_S = 1.0  # what a producer that is given up may still get out; who waited for it sends it again
PRODUCE_BATCH_BYTES = 64 << 10  # far below a broker's megabyte: only a single record can be too large


def too_large(error: BaseException) -> RecordTooLarge:
    """One of TOO_LARGE as ours, to be raised from it."""
    return RecordTooLarge(
        f"a record exceeds what its topic accepts: {error!r}",
        hint="raise max.message.bytes of the topic and kafka.produce_bytes_max to what the input's topic takes",
    )


class KafkaSink(AtLeastOnce):
    """What goes out: acknowledged by all replicas, each message once whatever the network does. A context manager.

    Bounded by aiokafka: one unsent batch a partition, and whoever has more to send waits.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._opening: asyncio.Task[AIOKafkaProducer] | None = None
        self._given_up: set[asyncio.Task[None]] = set()
        self._gone = WeakSet[AIOKafkaProducer]()
        self._sending = 0  # calls that wait for acknowledgements

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        producer, self._producer = self._producer, None
        if producer is not None:
            await _flush(producer, FLUSH_S)
            self._give_up(producer)
        if self._given_up:
            _, late = await asyncio.wait(self._given_up, timeout=FLUSH_S)
            for task in late:
                task.cancel()

    async def send_all(self, messages: Sequence[Message]) -> None:
        """Return when all of `messages` are acknowledged.

        Raises RecordTooLarge when one of them never can be, and BrokerUnavailable when it is not known of some:
        sending them all again is safe, since nobody reads an alert or a dead letter by its offset.
        """
        producer = await self._connected()
        self._sending += 1
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                acks = [await _send(producer, message) for message in messages]
                outcomes = await asyncio.gather(*acks, return_exceptions=True)
        except (KafkaError, TimeoutError) as error:
            outcomes = [error]
        except asyncio.CancelledError:
            self._renew(producer)
            raise
        finally:
            self._sending -= 1
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if not errors:
            return
        if self._producer is producer and not isinstance(errors[0], TimeoutError):
            self._producer = None
            await _flush(producer, FLUSH_S)  # others' messages, which may still get out in good order
        self._renew(producer)
        first = next((error for error in errors if isinstance(error, TOO_LARGE)), errors[0])
        if isinstance(first, TOO_LARGE):
            raise too_large(first) from first
        raise failure(self._settings, "to take what we sent", first, "WRITE") from first

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        # One for all who wait: tried by each in turn, an outage would make the last of them wait for all tries.
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    async def _open(self) -> AIOKafkaProducer:
        # Its own timeout closes a connection in good manners, with all that lies in it; ours, which cuts, comes first.
        patient = {"request_timeout_ms": ms(2 * self._settings.request_timeout_s)}
        producer = AIOKafkaProducer(
            **(self._settings.client() | patient),
            acks="all",
            enable_idempotence=True,
            max_request_size=self._settings.produce_bytes_max,
            max_batch_size=PRODUCE_BATCH_BYTES,
        )
        try:
            # Bounded by us: for the number that makes its sends idempotent, a producer waits without end.
            async with asyncio.timeout(self._settings.request_timeout_s):
                await producer.client.bootstrap()
                require_metadata(producer.client)
                await producer.start()
        except BaseException as error:
            await closed(producer.stop(), "a producer that could not be opened")
            if isinstance(error, KafkaError | OSError | TimeoutError):
                raise await unreachable(self._settings, error) from error
            raise
        self._producer = producer
        return producer

    def _opened(self, opening: "asyncio.Task[AIOKafkaProducer]") -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # whoever waited has it; if nobody waits any more, nobody needs it

    def abandon(self) -> None:
        """As in `Sink`: the next message goes by a new producer."""
        if self._sending and self._producer is not None:
            self._renew(self._producer)

    def _renew(self, broken: AIOKafkaProducer) -> None:
        if self._producer is broken:
            self._producer = None
        self._give_up(broken)

    def _give_up(self, producer: AIOKafkaProducer) -> None:
        """Its connections are cut at once; its tasks end in the background, and what it holds fails then."""
        if producer in self._gone:
            return
        self._gone.add(producer)
        _cut(producer)
        task = asyncio.create_task(_end(producer))
        self._given_up.add(task)
        task.add_done_callback(self._given_up.discard)


async def _send(producer: AIOKafkaProducer, message: Message) -> Awaitable[object]:
    topic, key, value, headers, timestamp_ms, partition = message
    ack: Awaitable[object] = await producer.send(topic, value, key, partition, timestamp_ms, list(headers))
    return ack


async def _flush(producer: AIOKafkaProducer, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await producer.flush()


def _cut(producer: AIOKafkaProducer) -> None:
    """From here on nothing of it leaves this machine: not what is held, nor what the system has buffered."""
    sender = producer._sender._sender_task
    if sender is not None:
        sender.cancel()  # it ends once, not again: a second cancellation would cut its end short
    for connection in producer.client._conns.values():
        writer = connection._writer
        if writer is not None and (sock := writer.get_extra_info("socket")) is not None:
            with suppress(OSError):  # it is closed already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


async def _end(producer: AIOKafkaProducer) -> None:
    """Stop a producer that was cut, whatever it has not sent: its own `stop` would wait for that, and cut short it
    would leave its sender and its connections behind, trying for ever."""
    sender = producer._sender._sender_task
    try:
        if sender is not None:
            await asyncio.wait({sender})  # its requests fail, since their connections are gone
            if not sender.cancelled():
                sender.exception()  # of whoever was not acknowledged, who hears below
    finally:
        producer._closed = True  # it is, and need not warn that it was not
        # Whoever waits for an acknowledgement need not wait for a timeout to hear that none comes.
        held = producer._message_accumulator
        held._pending_batches.update(batch for batches in held._batches.values() for batch in batches)
        held.fail_all(KafkaConnectionError("the producer was given up"))
        await producer.client.close()
