"""Do both servers answer? Asked every few seconds, because a partition without traffic would not notice.

A partition that works finds out by itself that the store or Kafka is away. One that waits for its next event does not:
it would be called ready through an outage. So one small question goes to each server, about a partition of ours, and
`away` holds what did not answer. It mends nothing and decides nothing: it is for `/readyz` alone.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.store.protocol import Store
from ebbtide.stream.batch import Source
from ebbtide.stream.errors import PartitionRevoked

EVERY_S = 2.0
ANSWER_S_MAX = 5.0
"""Longer than a slow answer, shorter than the time-out of a request that may still succeed."""


class Pulse:
    """`away`: server to what is wrong with it, empty when both answered last time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away: dict[str, str] = {}

    async def run(self, source: Source) -> None:
        """For ever; cancel it to stop."""
        while True:
            if owned := source.assigned():
                partition = min(owned)
                await asyncio.gather(
                    self._ask("Redis", self._store.head(partition)),
                    self._ask("Kafka", source.log_range(partition)),
                )
            else:
                self.away.clear()
            await asyncio.sleep(EVERY_S)

    async def _ask(self, server: str, question: Coroutine[Any, Any, object]) -> None:
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await question
        except PartitionRevoked:
            return  # neither here nor there
        except EbbtideError as error:
            self.away[server] = str(error)
        except TimeoutError:
            self.away[server] = f"no answer within {ANSWER_S_MAX:.0f} s"
        else:
            self.away.pop(server, None)
