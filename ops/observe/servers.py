"""Redis and Kafka as seen from here: the same store and sink, and what each call took or failed of.

    redis    one observation for a round of questions that were sent together: until the last answer came
    kafka    one for what was sent together: until the last acknowledgement

So a slow server shows as such, beside the stage of a turn that waited for it. A command that builds a worker without
metrics takes the plain ones.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit, Loaded, LoadRequest
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.stream.clock import Clock
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.outputs.message import Message

OnCall = Callable[[str, float, Sequence[str], int], None]
"""Told of each call: its operation, seconds, the error classes that it met, and how much it asked or sent."""
Answer = TypeVar("Answer")


class MeasuredStore(RedisStore):
    """A `RedisStore` that tells `on_call` of its rounds, as "checkpoint", "load" and "apply"."""

    def __init__(self, clock: Clock, on_call: OnCall, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._clock, self._on_call = clock, on_call

    def checkpoint_each(self, partitions: Sequence[int]) -> list[asyncio.Future[Checkpoint | None]]:
        began_s = self._clock.monotonic_s()
        return self._watched("checkpoint", began_s, super().checkpoint_each(partitions))

    def load_each(self, requests: Sequence[LoadRequest]) -> list[asyncio.Future[Loaded]]:
        began_s = self._clock.monotonic_s()
        return self._watched("load", began_s, super().load_each(requests))

    def apply_each(self, commits: Sequence[Commit]) -> list[asyncio.Future[None]]:
        began_s = self._clock.monotonic_s()
        return self._watched("apply", began_s, super().apply_each(commits))

    def _watched(
        self, operation: str, began_s: float, futures: list[asyncio.Future[Answer]]
    ) -> list[asyncio.Future[Answer]]:
        left, errors = len(futures), list[str]()

        def answered(future: asyncio.Future[Answer]) -> None:
            nonlocal left
            left -= 1
            if not future.cancelled() and (error := future.exception()) is not None:
                errors.append(type(error).__name__)
            if not left:
                self._on_call(operation, self._clock.monotonic_s() - began_s, errors, len(futures))

        for future in futures:
            future.add_done_callback(answered)
        return futures


class MeasuredSink(KafkaSink):
    """A `KafkaSink` that tells `on_call` of its sends, as "send", and `on_sent` of what was acknowledged."""

    def __init__(
        self,
        clock: Clock,
        on_call: OnCall,
        settings: KafkaSettings,
        on_sent: Callable[[Sequence[Message]], None] = lambda _: None,
    ) -> None:
        super().__init__(settings)
        self._clock, self._on_call, self._on_sent = clock, on_call, on_sent

    async def send_all(self, messages: Sequence[Message]) -> None:
        began_s, errors = self._clock.monotonic_s(), list[str]()
        try:
            await super().send_all(messages)
        except Exception as error:
            errors.append(type(error).__name__)
            raise
        finally:
            self._on_call("send", self._clock.monotonic_s() - began_s, errors, len(messages))
        self._on_sent(messages)
