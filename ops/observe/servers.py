"""Redis and Kafka as seen from here: the same store and way out, and what each call took or failed of.

    redis    one observation for a round of questions that were sent together: until the last answer came
    kafka    one for what was sent together: until the last acknowledgement, or the end of the last transaction

So a slow server shows as such, beside the stage of a turn that waited for it. A command that builds a worker without
metrics takes the plain ones.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit, Loaded, LoadRequest
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.stream.clock import Clock
from ebbtide.stream.outputs.message import Delivery, Message, Parcel

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


class MeasuredDelivery:
    """A `Delivery` that tells `on_call` of what it does, as "send" and "take_over", and `on_sent` of the messages of
    each parcel that was acknowledged."""

    def __init__(
        self,
        clock: Clock,
        on_call: OnCall,
        delivery: Delivery,
        on_sent: Callable[[Sequence[Message]], None] = lambda _: None,
    ) -> None:
        self._clock, self._on_call, self._delivery, self._on_sent = clock, on_call, delivery, on_sent
        self.attach, self.abandon = delivery.attach, delivery.abandon

    async def take_over(self, partition: int) -> None:
        """As in `Delivery`."""
        began_s, errors = self._clock.monotonic_s(), list[str]()
        try:
            await self._delivery.take_over(partition)
        except Exception as error:
            errors.append(type(error).__name__)
            raise
        finally:
            self._on_call("take_over", self._clock.monotonic_s() - began_s, errors, 0)

    async def send_each(self, parcels: Sequence[Parcel]) -> list[EbbtideError | None]:
        """As in `Delivery`."""
        began_s = self._clock.monotonic_s()
        outcomes = await self._delivery.send_each(parcels)
        errors = [type(error).__name__ for error in outcomes if error is not None]
        messages = sum(len(parcel.messages) for parcel in parcels)
        self._on_call("send", self._clock.monotonic_s() - began_s, errors, messages)
        for parcel, error in zip(parcels, outcomes, strict=True):
            if error is None:
                self._on_sent(parcel.messages)
        return outcomes
