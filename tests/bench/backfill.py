"""Fills the idiomatic service's hashes with what was before the measurement: its own code, without Kafka and model.

    python -m tests.bench.backfill REDIS START_MS COUNT

So that it is measured, as ours is, among customers it knows: the first scores of twenty thousand strangers would be
another mix of work than what follows.
"""

import asyncio
import sys

import orjson

from tests.bench.idiomatic import Click, Store, grouped
from tests.bench.plain import SCORE_EVERY_MS
from tests.bench.traffic import clicks, records

CHUNK = 4_000


async def fill(redis_url: str, start_ms: int, count: int) -> None:
    store = Store(redis_url)
    for first in range(0, count, CHUNK):
        values = [value for _, value in records(clicks(first, min(CHUNK, count - first), start_ms))]
        own = grouped([Click(**orjson.loads(value)) for value in values])
        known = await store.add(own)
        due = {
            user: (made[-1].ts, False, list[str]())
            for user, made in own.items()
            if made[-1].ts - known[user][0] >= SCORE_EVERY_MS
        }
        if due:
            await store.decided(due)
    await store.redis.aclose()


if __name__ == "__main__":
    asyncio.run(fill(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
