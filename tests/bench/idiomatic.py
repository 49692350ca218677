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

from tests.bench.plain import (
    CONTACT,
    HOPS,
    KINDS,
    SCORE_EVERY_MS,
    SEQUENCE,
    TILES,
    WINDOWS,
    Entry,
    PlainModel,
    Profile,
    features_of,
)

KIND_CODE = {kind: str(code) for code, kind in enumerate(KINDS)}
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
                if click.type != CONTACT:
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


def read_state(state: dict[str, str], as_of: int) -> tuple[list[float], list[str]]:
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
    seen = [int(state.get(f"t:{code}", 0)) for code in range(len(KINDS))]
    first, last, active = int(state["first"]), int(state.get("last", 0)), int(state.get("active", 0))
    return features_of(Profile(first, last, active, seen, counts, sums), as_of), stale


def entries_of(sequence: list[str]) -> list[Entry]:
    """The list of a customer's last events, oldest first."""
    parts = (entry.split(":") for entry in reversed(sequence))
    return [(int(code), int(ts), float(amount)) for code, ts, amount in parts]


def score(model: PlainModel, rows: list[list[float]], sequences: list[list[str]]) -> NDArray[np.float32]:
    """p float32[n]. Runs in a thread."""
    return model.score(rows, [entries_of(sequence) for sequence in sequences])


async def handle(events: list[Click], store: Store, model: PlainModel) -> None:
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
    made = [read_state(state, as_of[user]) for user, (state, _) in zip(users, states, strict=True)]
    p = await asyncio.to_thread(score, model, [row for row, _ in made], [sequence for _, sequence in states])
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
    model = PlainModel(Path(os.environ["IDIOMATIC_MODEL"]))
    async for events in stream.take(BATCH, within=WITHIN_S):
        await handle(events, store, model)


if __name__ == "__main__":
    app.main()
