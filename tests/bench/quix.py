"""The same service as a good engineer would write it from the documentation of Quix Streams, version 3.

    clickstream ─▶ apply(count, stateful) ─▶ sink: the SavedModel, a checkpoint's rows at once ─▶ scores
    scores ─▶ apply(judge, stateful) ─▶ to_topic(alerts)

It does the same work for the same events as `idiomatic.py`: counts by kind in the same four rolling windows, sums,
recency, the last 32 events, a score when three hours of event time have passed, an alert where an episode opens or
resolves. State lies in RocksDB under the customer's key, in one value, and is backed by changelog topics, as is the
default. State can be read only while a message of its customer is handled, so what is scored in company goes through
a topic back to the customer, where the episode is kept: two dataframes in one application.

What its author would do for speed is done: one state value a customer and event, read and written once, in orjson (the
library's default); only rows that are due go further; the checkpoint's interval, at which a sink is flushed, as was
chosen, not tuned: see the environment variables below; polls short enough not to hold up a checkpoint, fetches
small enough that a backlog of clicks does not hold up the scores. At least once, its default; what the idiomatic
service leaves out (duplicates, late events, decays, reasons, dead letters, …) is left out here, too. A program by
itself, in an environment of its own (`environment.py`), set up by BENCH_* variables.
"""

import os
from pathlib import Path
from typing import Any

from quixstreams import Application, State
from quixstreams.models import TopicConfig
from quixstreams.sinks.base import BaseSink

from tests.bench.plain import (
    CONTACT,
    HOPS,
    KINDS,
    SCORE_EVERY_MS,
    SEQUENCE,
    TILES,
    PlainModel,
    Profile,
    features_of,
)

CODE = {kind: code for code, kind in enumerate(KINDS)}
COMMIT_S = float(os.environ.get("BENCH_QUIX_COMMIT_S", "0.1"))
COMMIT_EVERY = int(os.environ.get("BENCH_QUIX_COMMIT_EVERY", "1000"))
POLL_S = 0.01
CONSUMER = {"queued.min.messages": 1000, "max.partition.fetch.bytes": 256 << 10, "fetch.queue.backoff.ms": 10}
"""librdkafka's own defaults fetch a hundred thousand clicks ahead, and every score queues behind them."""
EMPTY = [0] * len(KINDS)


def count(click: dict[str, Any], state: State) -> dict[str, Any] | None:
    """Take an event into its customer's state. Returns what is to be scored when the customer is due.

    A window of the state is a list of [tile, sum, counts by kind], the newest last.
    """
    code, ts, value = CODE[click["type"]], click["ts"], click.get("value") or 0.0
    who: dict[str, Any] | None = state.get("customer")
    if who is None:
        who = {
            "first": ts,
            "last": 0,
            "active": 0,
            "decided": 0,
            "seen": [*EMPTY],
            "entries": [],
            "windows": [[], [], [], []],
        }
    for window, hop, tiles in zip(who["windows"], HOPS, TILES, strict=True):
        tile = ts // hop
        row = window[-1] if window and window[-1][0] == tile else opened(window, tile, tiles)
        row[1] += value
        row[2][code] += 1
    who["seen"][code] = ts
    if click["type"] != CONTACT:
        who["active"] += 1
        who["last"] = ts
    entries = who["entries"]
    entries.append((code, ts, value))
    del entries[:-SEQUENCE]
    is_due = ts - who["decided"] >= SCORE_EVERY_MS
    if is_due:
        who["decided"] = ts
    state.set("customer", who)
    if not is_due:
        return None
    return {
        "row": features_of(profile(who, ts), ts),
        "entries": entries,
        "as_of": ts,
        "event_id": click["event_id"],
    }


def opened(window: list[list[Any]], tile: int, tiles: int) -> list[Any]:
    """The row of a tile that is not the newest: a new one at its place; those that have left the window go."""
    for row in window:
        if row[0] == tile:
            return row
    made: list[Any] = [tile, 0.0, [*EMPTY]]
    window.append(made)
    window.sort(key=lambda row: row[0])
    while window[0][0] <= window[-1][0] - tiles:
        window.pop(0)
    return made


def profile(who: dict[str, Any], as_of: int) -> Profile:
    """The customer at a decision point."""
    counts, sums = [[0] * len(HOPS) for _ in KINDS], [0.0] * len(HOPS)
    for w, (window, hop, tiles) in enumerate(zip(who["windows"], HOPS, TILES, strict=True)):
        oldest = as_of // hop - tiles
        for tile, total, by_kind in window:
            if tile > oldest:
                sums[w] += total
                for kind, n in enumerate(by_kind):
                    counts[kind][w] += n
    return Profile(who["first"], who["last"], who["active"], who["seen"], counts, sums)


class ScoringSink(BaseSink):
    """Scores what has come together since the last checkpoint, at once, and sends each its score."""

    def __init__(self, app: Application, model: Path, scores: Any) -> None:
        super().__init__()
        self._app, self._path, self._scores = app, model, scores
        self._due: list[tuple[Any, dict[str, Any]]] = []

    def setup(self) -> None:
        """Called once, when the application starts."""
        self._model = PlainModel(self._path)
        self._producer = self._app.get_producer()

    def add(self, value: Any, key: Any, **_: Any) -> None:
        """A row that is due."""
        self._due.append((key, value))

    def flush(self) -> None:
        """At a checkpoint: nothing is committed whose scores Kafka does not have."""
        due, self._due = self._due, []
        if not due:
            return
        p = self._model.score([row["row"] for _, row in due], [row["entries"] for _, row in due])
        for (key, row), probability in zip(due, p.tolist(), strict=True):
            score = {"p": probability, "as_of": row["as_of"], "event_id": row["event_id"]}
            message = self._scores.serialize(key=key, value=score)
            self._producer.produce(topic=self._scores.name, key=message.key, value=message.value)
        self._producer.flush()


def main() -> None:
    """Until SIGTERM."""
    told = {
        name: os.environ[f"BENCH_{name}"] for name in ("KAFKA", "TOPIC", "ALERTS", "GROUP", "STATE", "MODEL")
    }
    enter, partitions = float(os.environ["BENCH_ENTER"]), int(os.environ["BENCH_PARTITIONS"])
    app = Application(
        told["KAFKA"], consumer_group=told["GROUP"], auto_offset_reset="earliest", state_dir=told["STATE"],
        commit_interval=COMMIT_S, commit_every=COMMIT_EVERY, consumer_poll_timeout=POLL_S,
        consumer_extra_config=CONSUMER, loglevel="WARNING",
    )  # fmt: skip
    config = TopicConfig(num_partitions=partitions, replication_factor=1)
    clickstream = app.topic(told["TOPIC"], value_deserializer="json")
    scores = app.topic(
        told["TOPIC"] + "-scores", value_serializer="json", value_deserializer="json", config=config
    )
    alerts = app.topic(told["ALERTS"], value_serializer="json")

    def judge(
        score: dict[str, Any], key: Any, _timestamp: int, _headers: Any, state: State
    ) -> dict[str, Any] | None:
        is_open = score["p"] >= enter
        if is_open == state.get("open", default=False):
            return None
        state.set("open", is_open)
        return {
            "user_id": key.decode(), "transition": "opened" if is_open else "resolved", "probability": score["p"],
            "as_of": score["as_of"], "event_id": score["event_id"],
        }  # fmt: skip

    due = app.dataframe(clickstream).apply(count, stateful=True).filter(lambda row: row is not None)
    due.sink(ScoringSink(app, Path(told["MODEL"]), scores))
    judged = app.dataframe(scores).apply(judge, stateful=True, metadata=True)
    judged.filter(lambda alert: alert is not None).to_topic(alerts)
    app.run()


if __name__ == "__main__":
    main()
