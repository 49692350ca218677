"""A log through the whole service, under the log's own clock: what would it have said then?

    history before --from ──fold──▶ store            the rest ──Kafka──▶ worker ──▶ store, alerts, scores
                                                                            │ at each snapshot: wait until applied,
                                                                            ▼ score every eligible customer's record
                                                                 the figures of `ops/replay/report.py`

Time is data here: events carry their own times, Kafka timestamps are the log's arrival times, and a snapshot is taken
when everything that had arrived by then is applied. At the end the scores that were streamed are held against those of
an offline replay of the same log with the same model: the same points, the same bits, or something is wrong.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from ebbtide.featurestore.files.as_stream import contract_spec, records_of, stamps_of
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.record.replay import arrived_before
from ebbtide.featurestore.spec import Spec, dump_spec
from ebbtide.featurestore.store.checkpoint import History
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.config.settings import Settings, TimerSettings
from ebbtide.ops.errors import OpsError
from ebbtide.ops.state.backfill import Progress, backfill
from ebbtide.ops.state.junction import Junction
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import log_ranges, read_topic
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics, partition_for
from ebbtide.stream.outputs.alert import Alert
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.outputs.scores import ScoreRecord, read_score
from ebbtide.stream.outputs.versions import read_alert

SEND_RECORDS = 2_000
"""Records handed to the producer at once: it batches them by partition, and a chunk's acknowledgements are one wait."""
STALL_S_MAX = 120.0
"""A worker that applies nothing for so long, while records wait, will not."""
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every eligible customer of the live store as of `as_of` (ms UTC). rows[n]; customer int32[n] into the log's."""

    as_of: int
    customer: NDArray[np.int32]
    rows: Rows


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came out. `start`: index of the first streamed event, of time `from_ms` or later; `offset`: int64[n -
    start], where each streamed event lay in its partition; `until_ms`: int64[customers], up to when timers took each
    customer's silences. alerts and scores each once, as a consumer that reads by id sees
    them."""

    from_ms: int
    start: int
    offset: NDArray[np.int64]
    until_ms: NDArray[np.int64]
    snapshots: list[Snapshot]
    alerts: list[Alert]
    scores: list[ScoreRecord]
    dead_letters: int
    seconds: float
    peak_rss_bytes: int


async def replay(
    settings: Settings,
    spec: Spec,
    log: EventLog,
    *,
    from_ms: int,
    snapshots: Sequence[int],
    run: str,
    folder: Path,
    progress: Progress,
) -> Replayed:
    """Backfill up to `from_ms`, stream the rest, take the snapshots (ms UTC, each at or after `from_ms`).

    `settings` name the servers and the model; topics, group and keys get the name of the `run`, so that nothing of
    another run is touched. Raises EbbtideError.
    """
    early = [as_of for as_of in snapshots if as_of < from_ms]
    if early:
        raise OpsError("a snapshot lies before --from", hint="move --from back, or take the snapshot out")
    own = _own_settings(settings, spec, run, folder)
    layout, loop = Layout(spec), asyncio.get_running_loop()
    counts = await ensure_topics(own.kafka, replay_topics(own))
    partitions = counts[own.kafka.topic]
    start = arrived_before(log.events, from_ms)
    keys = spec.keys_of(log.events.customers)
    home = np.array([partition_for(key, partitions) for key in keys], np.int64)
    partition = home[log.events.customer[start:]]
    offset = _offsets(partition, partitions)
    ends_ms = np.zeros(partitions, np.int64)  # the logical clock of each partition, when all is applied
    np.maximum.at(ends_ms, partition, stamps_of(log, contract_spec(spec))[start:])
    async with open_store(own, layout, partitions) as store:
        junctions = dict.fromkeys(range(partitions), Junction(0, History(from_ms, 0)))
        await backfill(log.events, layout, store, junctions, from_ms, progress=progress)
        with WorkerProcess(own, folder) as worker:
            await asyncio.to_thread(worker.wait_ready)
            began_s = loop.time()
            taken, sent = [], 0
            records = records_of(log, contract_spec(spec), start)
            async with KafkaSink(own.kafka) as sink:
                for as_of in [*sorted(snapshots), None]:
                    end = len(log) if as_of is None else arrived_before(log.events, as_of + 1)
                    async for n in _stream(sink, own.kafka.topic, records, end - start - sent):
                        sent += n
                        worker.check()
                        progress(sent, max(len(log) - start, 1), f"{sent:,} events streamed")
                    await _applied(store, worker, partition[:sent], partitions)
                    if as_of is not None:
                        taken.append(await _snapshot(store, layout, log.events.customers, as_of, partitions))
            await _timers_ran(store, worker, ends_ms)
            seconds, rss = loop.time() - began_s, worker.peak_rss_bytes()
    alerts = [read_alert(value) for value in await _values(own, own.topics.alerts)]
    scores = [read_score(value) for value in await _values(own, str(own.topics.scores))]
    letters = await log_ranges(own.kafka, own.topics.dead_letters)
    return Replayed(
        from_ms, start, offset, ends_ms[home], taken, list({alert.alert_id: alert for alert in alerts}.values()),
        list(dict.fromkeys(scores)), sum(end - begin for begin, end in letters.values()), seconds, rss,
    )  # fmt: skip


def replay_topics(own: Settings) -> list[TopicSpec]:
    """The run's topics; its input takes records of any time, and keeps them: a log of years ago would be gone by
    retention while it is streamed, and one event from the future refused, with its whole batch."""
    any_time = {"retention.ms": "-1", "message.timestamp.after.max.ms": str(2**63 - 1)}
    return [
        replace(spec, config={**spec.config, **any_time}) if spec.name == own.kafka.topic else spec
        for spec in topic_specs(own)
    ]


def _own_settings(settings: Settings, spec: Spec, run: str, folder: Path) -> Settings:
    """The worker's settings: this run's own topics, group and keys; the spec in the contract's own form."""
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(dump_spec(contract_spec(spec)), sort_keys=False), encoding="utf-8")
    named = {"alerts": f"{run}-alerts", "dead_letters": f"{run}-dead-letters", "scores": f"{run}-scores"}
    return settings.model_copy(
        update={
            "spec": path,
            "kafka": settings.kafka.model_copy(update={"topic": f"{run}-events", "group": run}),
            "redis": settings.redis.model_copy(update={"prefix": f"{run}:"}),
            "topics": settings.topics.model_copy(update=named),
            "alerts_from": "start",
            "timers": TimerSettings(clock="event", lateness_max=0, customers_per_s_max=1_000_000),
        }
    )


def _offsets(partition: NDArray[np.int64], partitions: int) -> NDArray[np.int64]:
    """The offset of every event, by its partition, in a topic that is empty before."""
    offset = np.empty(len(partition), np.int64)
    for p in range(partitions):
        mine = partition == p
        offset[mine] = np.arange(mine.sum())
    return offset


async def _stream(
    sink: KafkaSink, topic: str, records: Iterator[tuple[bytes, bytes, int]], n: int
) -> AsyncIterator[int]:
    """Produce the next n records; yields how many went with each chunk."""
    while n > 0:
        chunk = [
            Message(topic, key, value, (), timestamp)
            for key, value, timestamp in islice(records, min(n, SEND_RECORDS))
        ]
        await sink.send_all(chunk)
        n -= len(chunk)
        yield len(chunk)


async def _applied(
    store: RedisStore, worker: WorkerProcess, sent: NDArray[np.int64], partitions: int
) -> None:
    """Until the store's heads say that all that was sent is applied. Raises when nothing moves any more."""
    expected = np.bincount(sent, minlength=partitions)
    loop = asyncio.get_running_loop()
    before, since_s = np.full(partitions, -1), loop.time()
    while True:
        checkpoints = [await store.checkpoint(p) for p in range(partitions)]
        reached = np.array([checkpoint.offset if checkpoint else 0 for checkpoint in checkpoints])
        if (reached >= expected).all():
            return
        worker.check()
        if (reached != before).any():
            before, since_s = reached, loop.time()
        elif loop.time() - since_s > STALL_S_MAX:
            raise OpsError(
                f"the worker applies nothing any more, at {reached} of {expected}", hint=f"see {worker.log}"
            )
        await asyncio.sleep(POLL_S)


async def _timers_ran(store: RedisStore, worker: WorkerProcess, ends_ms: NDArray[np.int64]) -> None:
    """Until nobody is due any more by the logical clock of any partition. Raises when that takes too long."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + STALL_S_MAX
    for partition, until_ms in enumerate(ends_ms.tolist()):
        while (await store.due(partition, until_ms, 1))[0]:
            worker.check()
            if loop.time() > end_s:
                raise OpsError("the worker's timers do not run any more", hint=f"see {worker.log}")
            await asyncio.sleep(POLL_S)


async def _snapshot(
    store: RedisStore, layout: Layout, customers: list[str], as_of: int, partitions: int
) -> Snapshot:
    """Read every record of the live store; keep those that are eligible as of then."""
    index = {name: i for i, name in enumerate(customers)}
    found, rows = [], []
    for partition in range(partitions):
        async for names, page in store.scan(partition):
            found += [index[name] for name in names]
            rows.append(page)
    every = np.concatenate(rows) if rows else layout.empty(0)
    customer = np.array(found, np.int32)
    order = np.argsort(customer)
    every, customer = every[order], customer[order]
    chosen = Folder(layout).eligible(every, as_of)
    return Snapshot(as_of, customer[chosen], every[chosen])


async def _values(settings: Settings, topic: str) -> list[bytes]:
    return [record.value async for record in read_topic(settings.kafka, topic) if record.value is not None]
