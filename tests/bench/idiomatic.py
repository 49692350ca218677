"""What Ebbtide is measured against: the same service as a good engineer would write it from Faust's documentation.

    @app.agent ─▶ stream.take(N, within) ─▶ a Redis hash and list a customer ─▶ a TensorFlow SavedModel ─▶ alerts topic

It does the same work for the same events: counts by kind in the same four rolling windows, sums, recency, the last 32
events as a sequence; scores a customer when three hours of event time have passed since the last score, in batches,
with the same network and weights in a thread of its own; opens an episode at p >= enter, resolves it below, and sends
either as an alert. What its author would do for speed is done: records decoded by orjson (Faust uses it when it is
there), hiredis, one pipeline for all writes of a batch and one for all reads, increments added up in the process before
they are sent, the large hash read only for customers that are due, TTLs renewed when a customer is scored and not at
every click, alerts awaited together, N and `within` as measured to be best on the machine that the bench was made on.

What it does not do, all of which would cost it more: exactly-once in state (a crash counts a batch twice or not at
all: `take` acknowledges whatever happened), duplicates, late events, silences between events, decayed counts, active
days and the spread of gaps (these features are zero), reasons, dead letters, tombstones, metrics, bounds. It is a
program by itself, for `python -m tests.bench.idiomatic worker`, set up by IDIOMATIC_* variables.
"""

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import faust
import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
KINDS = (
    "page_view", "search", "add_to_cart", "wishlist", "purchase", "review", "support_ticket", "newsletter",
)  # fmt: skip
WINDOWS = {"1h": (HOUR_MS, 6), "1d": (DAY_MS, 8), "7d": (7 * DAY_MS, 7), "30d": (30 * DAY_MS, 6)}
"""Length in ms and tiles. A tile's count is a field of the hash; a window's is the sum of its last tiles."""
HOPS = [length // tiles for length, tiles in WINDOWS.values()]
TILES = [tiles for _, tiles in WINDOWS.values()]
KIND_CODE = {kind: str(code) for code, kind in enumerate(KINDS)}
SEQUENCE = 32
SCORE_EVERY_MS = 3 * HOUR_MS
TTL_S = 60 * 24 * 3600
BATCH = int(os.environ.get("IDIOMATIC_BATCH", "500"))
WITHIN_S = float(os.environ.get("IDIOMATIC_WITHIN_S", "0.05"))
ENTER = float(os.environ.get("IDIOMATIC_ENTER", "0.5"))


class Click(faust.Record, serializer="json"):
    event_id: str
    user_id: str
    type: str
    ts: int
    value: float | None = None
    properties: dict[str, str] | None = None


class Alert(faust.Record, serializer="json"):
    user_id: str
    transition: str
    probability: float
    as_of: int
    event_id: str


app = faust.App(
    os.environ.get("IDIOMATIC_GROUP", "idiomatic"),
    broker="kafka://" + os.environ.get("IDIOMATIC_KAFKA", "localhost:9092"),
    broker_commit_interval=1.0,
    topic_disable_leader=True,
    web_enabled=False,
)
clickstream = app.topic(os.environ.get("IDIOMATIC_TOPIC", "clickstream"), value_type=Click)
alerts = app.topic(os.environ.get("IDIOMATIC_ALERTS", "alerts"), value_type=Alert)


class Store:
    """Feature hashes in Redis: u:<id> holds counters, u:<id>:seq the last events, newest first."""

    def __init__(self, url: str) -> None:
        self.redis = Redis.from_url(url, decode_responses=True)

    async def add(self, clicks: dict[str, list[Click]]) -> dict[str, tuple[int, bool]]:
        """Count every customer's new events. Returns for each when they were last scored, and if an episode is open."""
        pipe = self.redis.pipeline(transaction=False)
        for user, own in clicks.items():
            key = f"u:{user}"
            seen: dict[Any, Any] = {}
            counts: Counter[str] = Counter(n=len(own))
            sums: dict[str, float] = {}
            for click in own:
                code, ts = KIND_CODE[click.type], click.ts
                for window, hop in enumerate(HOPS):
                    tile = ts // hop
                    counts[f"c:{window}:{code}:{tile}"] += 1
                    if click.value is not None:
                        field = f"s:{window}:{tile}"
                        sums[field] = sums.get(field, 0.0) + click.value
                seen[f"t:{code}"] = ts
                if click.type != "newsletter":
                    counts["active"] += 1
                    seen["last"] = ts
            for field, count in counts.items():
                pipe.hincrby(key, field, count)
            for field, amount in sums.items():
                pipe.hincrbyfloat(key, field, amount)
            pipe.hset(key, mapping=seen)
            pipe.hsetnx(key, "first", own[0].ts)
            entries = [f"{KIND_CODE[click.type]}:{click.ts}:{click.value or 0}" for click in own]
            pipe.lpush(key + ":seq", *entries)
            pipe.ltrim(key + ":seq", 0, SEQUENCE - 1)
        for user in clicks:
            pipe.hmget(f"u:{user}", "decided", "open")
        replies = (await pipe.execute())[-len(clicks) :]
        return {
            user: (int(decided or 0), is_open == "1")
            for user, (decided, is_open) in zip(clicks, replies, strict=True)
        }

    async def read(self, users: list[str]) -> list[tuple[dict[str, str], list[str]]]:
        """Hash and sequence of each."""
        pipe = self.redis.pipeline(transaction=False)
        for user in users:
            pipe.hgetall(f"u:{user}")
            pipe.lrange(f"u:{user}:seq", 0, -1)
        replies = await pipe.execute()
        return list(zip(replies[::2], replies[1::2], strict=True))

    async def decided(self, users: dict[str, tuple[int, bool, list[str]]]) -> None:
        """Remember when each was scored and whether an episode is open; drop the tiles that no window holds."""
        pipe = self.redis.pipeline(transaction=False)
        for user, (as_of, is_open, stale) in users.items():
            pipe.hset(f"u:{user}", mapping={"decided": as_of, "open": int(is_open)})
            if stale:
                pipe.hdel(f"u:{user}", *stale)
            pipe.expire(f"u:{user}", TTL_S)
            pipe.expire(f"u:{user}:seq", TTL_S)
        await pipe.execute()


def grouped(clicks: list[Click]) -> dict[str, list[Click]]:
    by_user: dict[str, list[Click]] = {}
    for click in clicks:
        by_user.setdefault(click.user_id, []).append(click)
    return by_user


def filled_columns() -> NDArray[np.bool_]:
    """Which of the network's features this service computes."""
    return np.array(
        [not ("_decay_" in name or name in ("active_days_30d", "gap_spread")) for name in feature_names()]
    )


def feature_names() -> list[str]:
    """The network's inputs, in order: as the data scientist who trained it left them."""
    rhythm = [
        "silence", "tenure", "activity_total", "gap_usual", "gap_spread", "gap_missing", "silence_ratio",
        "active_days_30d",
    ]  # fmt: skip
    windows = [f"{kind}_count_{window}" for kind in KINDS for window in WINDOWS]
    values = [f"purchase_{aggregate}_{window}" for aggregate in ("sum", "mean") for window in WINDOWS]
    recency = [f"{kind}_since" for kind in KINDS] + [f"{kind}_never" for kind in KINDS]
    return rhythm + windows + values + recency + [f"{kind}_decay_1d" for kind in KINDS]


WIDTH = len(feature_names())


def features_of(state: dict[str, str], as_of: int) -> tuple[list[float], list[str]]:
    """The features of a customer, and the fields of tiles that have left their window."""
    counts = [[0] * len(WINDOWS) for _ in KINDS]
    sums = [0.0] * len(WINDOWS)
    oldest = [as_of // hop - tiles for hop, tiles in zip(HOPS, TILES, strict=True)]
    stale = []
    for field, value in state.items():
        if not field.startswith(("c:", "s:")):
            continue
        parts = field.split(":")
        window = int(parts[1])
        if int(parts[-1]) <= oldest[window]:
            stale.append(field)
        elif parts[0] == "c":
            counts[int(parts[2])][window] += int(value)
        else:
            sums[window] += float(value)
    first, last, active = int(state["first"]), int(state.get("last", 0)), int(state.get("active", 0))
    silence = (as_of - last) / DAY_MS if last else 0.0
    usual = (last - first) / DAY_MS / (active - 1) if active > 1 else 0.0
    row = [silence, (as_of - first) / DAY_MS, active, usual, 0.0, float(active < 2)]
    row += [silence / usual if usual else 0.0, 0.0]
    for kind in counts:
        row += kind
    row += sums
    bought = counts[KINDS.index("purchase")]
    row += [total / n if n else 0.0 for total, n in zip(sums, bought, strict=True)]
    seen = [int(state.get(f"t:{code}", 0)) for code in range(len(KINDS))]
    row += [(as_of - ts) / DAY_MS if ts else 0.0 for ts in seen]
    row += [float(not ts) for ts in seen]
    row += [0.0] * len(KINDS)
    return row, stale


class Scorer:
    """The SavedModel, and the arrays it takes."""

    def __init__(self, path: Path) -> None:
        import tensorflow as tf

        self._tf = tf
        self._loaded = tf.saved_model.load(str(path))
        self._score = self._loaded.signatures["score"]

    def score(self, rows: list[list[float]], sequences: list[list[str]]) -> NDArray[np.float32]:
        """p float32[n]. Runs in a thread: TensorFlow lets go of the interpreter."""
        n = len(rows)
        kind, count = np.zeros((n, SEQUENCE), np.int32), np.zeros((n, SEQUENCE), np.float32)
        value, gap = np.zeros((n, SEQUENCE), np.float32), np.zeros((n, SEQUENCE), np.float32)
        for i, entries in enumerate(sequences):
            before = 0
            for at, entry in enumerate(reversed(entries), SEQUENCE - len(entries)):
                code, ts, amount = entry.split(":")
                kind[i, at], count[i, at], value[i, at] = int(code) + 1, 1, float(amount)
                gap[i, at] = (int(ts) - before) / 1000 if before else 0.0
                before = int(ts)
        inputs = {
            "features": np.array(rows, np.float32),
            "kind": kind,
            "count": count,
            "value": value,
            "gap": gap,
        }
        out = self._score(**{name: self._tf.constant(column) for name, column in inputs.items()})
        probability: NDArray[np.float32] = out["probability"].numpy()
        return probability


async def handle(events: list[Click], store: Store, scorer: Scorer) -> None:
    """Count a batch of events, score who is due, alert whose episode opens or ends."""
    clicks = grouped(events)
    known = await store.add(clicks)
    as_of = {
        user: own[-1].ts for user, own in clicks.items() if own[-1].ts - known[user][0] >= SCORE_EVERY_MS
    }
    if not as_of:
        return
    users = list(as_of)
    states = await store.read(users)
    made = [features_of(state, as_of[user]) for user, (state, _) in zip(users, states, strict=True)]
    p = await asyncio.to_thread(scorer.score, [row for row, _ in made], [entries for _, entries in states])
    decided, sent = {}, []
    for user, (_, stale), probability in zip(users, made, p.tolist(), strict=True):
        is_open = probability >= ENTER
        decided[user] = (as_of[user], is_open, stale)
        if is_open != known[user][1]:
            last = clicks[user][-1]
            alert = Alert(user, "opened" if is_open else "resolved", probability, last.ts, last.event_id)
            sent.append(await alerts.send(key=user, value=alert))
    await store.decided(decided)
    await asyncio.gather(*sent)


@app.agent(clickstream)
async def score_customers(stream: Any) -> None:
    store = Store(os.environ["IDIOMATIC_REDIS"])
    scorer = Scorer(Path(os.environ["IDIOMATIC_MODEL"]))
    async for events in stream.take(BATCH, within=WITHIN_S):
        await handle(events, store, scorer)


if __name__ == "__main__":
    app.main()
