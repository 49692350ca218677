"""What a key costs in the store, as the worker sees it: `python -m tests.bench.bench_store [--redis URL]`.

Prints µs a key of `apply` (one script), `load` (one MGET) and `load_through` a cache that knows everything, beside the
share of apply that the server itself spends: median, and 10th to 95th percentile of batches (on a busy machine the 10th
is the store's own). Batches are drawn from CUSTOMERS customers that are already there, so that tables and sorted sets
have their real size.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
from redis.asyncio import Redis

from ebbtide.featurestore.store.cache import Cache, load_through
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX, Commit, OutboxEntry
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.stack.local import LocalValkey

CUSTOMERS = 50_000
ROUNDS = 60
HEAD = Checkpoint(0, 0, 0, "0123456789abcdef", 1)


def told(spent_s: list[float], n: int) -> str:
    """Median, and 10th to 95th percentile, in µs a key of n."""
    low, median, high = np.quantile(np.array(spent_s) / n * 1e6, [0.1, 0.5, 0.95])
    return f"{median:5.2f} ({low:.2f} to {high:.2f})"


async def timed(act: Callable[[], Awaitable[object]]) -> list[float]:
    """Seconds of each of ROUNDS calls."""
    spent = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        await act()
        spent.append(time.perf_counter() - start)
    return spent


async def measure(url: str, record_bytes: int, sizes: tuple[int, ...]) -> None:
    dtype = np.dtype([("raw", "u1", (record_bytes,))])
    store = RedisStore(url, dtype, "bench", 1, prefix=f"{record_bytes}:")
    rng = np.random.default_rng(0)
    names = [f"customer-{i:08}" for i in range(CUSTOMERS)]
    checkpoint: Checkpoint | None = None
    cache = Cache(dtype, 2 * CUSTOMERS * dtype.itemsize)

    async def apply(some: list[str], alerts: list[tuple[bytes, bytes]]) -> None:
        nonlocal checkpoint
        rows = rng.integers(0, 256, (len(some), record_bytes), np.uint8).view(dtype).reshape(-1)
        due = rng.integers(1_700_000_000_000, 1_800_000_000_000, len(some))
        moved = HEAD._replace(sequence=checkpoint.sequence + 1 if checkpoint else 1)
        outbox = [OutboxEntry(key, moved.sequence, key, value) for key, value in alerts]
        commit = Commit(
            0, checkpoint, moved, some, rows, due, outbox=outbox, acked=[entry.id for entry in outbox]
        )
        start = time.perf_counter()
        await store.apply(commit)
        applied_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        cache.put(commit)
        put_s.append(time.perf_counter() - start)
        checkpoint = moved

    applied_s: list[float] = []
    put_s: list[float] = []
    for i in range(0, CUSTOMERS, CUSTOMERS_MAX):
        await apply(names[i : i + CUSTOMERS_MAX], [])

    async with Redis.from_url(url) as admin:
        for n in sizes:

            def some(n: int = n) -> list[str]:
                return [names[i] for i in rng.choice(CUSTOMERS, n, replace=False).tolist()]

            async def write(n: int = n) -> None:
                await apply(some(n), [(b"alert-%d" % i, bytes(600)) for i in range(n // 50)])

            applied_s.clear()
            put_s.clear()
            await admin.config_resetstat()
            await timed(write)
            script = (await admin.info("commandstats"))["cmdstat_evalsha"]["usec_per_call"] / n
            batches = [some(n) for _ in range(ROUNDS)]
            left = iter(batches)
            load = await timed(lambda: store.load(0, next(left)))  # noqa: B023 - it is used up in this round
            again = iter(batches)
            hot = await timed(lambda: load_through(cache, store, 0, checkpoint, next(again)))  # noqa: B023 - as above
            print(
                f"{record_bytes:5} B {n:5} customers   apply {told(applied_s, n)}, the server's share {script:.1f}"
                f"   load {told(load, n)}   cached {told(hot, n)}, put {told(put_s, n)}   µs a key",
                flush=True,
            )
    usage = await store.memory_usage(0, names[:CUSTOMERS_MAX])
    print(
        f"{record_bytes:5} B: {usage.records.mean():.0f} bytes a record in the server, {usage.due:.0f} its due time"
    )
    await store.reset(0)
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="µs a key of the store")
    parser.add_argument("--redis", help="a server that may be filled; default: a Valkey of its own")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512, 1024], help="customers in a batch")
    asked = parser.parse_args()

    def run(url: str) -> None:
        for record_bytes in (512, 1024):
            asyncio.run(measure(url, record_bytes, tuple(asked.sizes)))

    if asked.redis:
        run(asked.redis)
    else:
        with LocalValkey() as valkey:
            run(valkey.url)


if __name__ == "__main__":
    main()
