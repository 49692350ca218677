"""Do both servers answer? One small question to each, every few seconds, for `/readyz`.

It knows neither partitions nor turns, and decides nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.store.protocol import Store
from ebbtide.stream.batch import Source
from ebbtide.stream.errors import PartitionRevoked

PULSE_EVERY_S = 2.0
PULSE_ANSWER_S_MAX = 5.0
"""Longer than a slow answer, shorter than the time-out of a request that may still succeed."""


class Pulse:
    """Do both servers answer? Asked every few seconds, because a partition without traffic would not notice.

    A partition that works finds out by itself that the store or Kafka is away. One that waits for its next event does
    not: it would be called ready through an outage. So one small question goes to each server, about a partition of
    ours, and `away` holds what did not answer: server to what is wrong with it. It decides nothing: it is for /readyz.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away: dict[str, str] = {}

    async def run(self, source: Source) -> None:
        """For ever; cancel it to stop."""
        while True:
            if owned := source.assigned():
                partition = min(owned)
                await asyncio.gather(
                    self._ask("Redis", partial(self._store.checkpoint, partition)),
                    self._ask("Kafka", partial(source.log_range, partition)),
                )
            else:
                self.away.clear()
            await asyncio.sleep(PULSE_EVERY_S)

    async def _ask(self, server: str, question: Callable[[], Awaitable[object]]) -> None:
        try:
            async with asyncio.timeout(PULSE_ANSWER_S_MAX):
                await question()
        except PartitionRevoked:
            return  # neither here nor there
        except EbbtideError as error:
            self.away[server] = str(error)
        except TimeoutError:
            self.away[server] = f"no answer within {PULSE_ANSWER_S_MAX:.0f} s"
        else:
            self.away.pop(server, None)
