"""Training-serving skew: the live topic's last records, counted like the history that the last run learned from.

    last done run ─▶ statistics, schema ─┐
    live topic ─▶ last records ─parse─▶ span of the same bins ─▶ anomalies in words

It reads the topic outside of any group, and makes nothing. What a worker would refuse is counted apart: a record that
is bad to the parser is nobody's event.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.events.parse import ParseLimits, Parser
from ebbtide.featurestore.spec import Spec
from ebbtide.model.factory.schema import COUNT_MIN, Anomaly, Schema, check_skew
from ebbtide.model.factory.statistics import Span, Statistics, span_like
from ebbtide.model.factory.values import read_value
from ebbtide.ops.errors import OpsError
from ebbtide.ops.pipeline.config import PipelineConfig
from ebbtide.ops.pipeline.store import Store
from ebbtide.stream.kafka.reader import log_ranges, read_topic
from ebbtide.stream.kafka.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class Skew:
    """records: that were read; rejected: of them, by reason; run: whose history it is. live: None when there are too
    few events to say anything."""

    run: int
    records: int
    rejected: dict[str, int]
    known: Span
    live: Span | None
    anomalies: list[Anomaly]


def as_json(found: Skew) -> dict[str, Any]:
    """Plain JSON."""
    return {
        "run": found.run, "records": found.records, "rejected": found.rejected,
        "history": {name: kind.share for name, kind in found.known.kinds.items()},
        "live": None if found.live is None else {
            name: {"share": kind.share, "events": kind.events} for name, kind in found.live.kinds.items()
        },
        "anomalies": [asdict(each) for each in found.anomalies],
    }  # fmt: skip


async def skew(config: PipelineConfig, kafka: KafkaSettings, limits: ParseLimits, records_max: int) -> Skew:
    """Compare the last records of `kafka.topic`, as many of each partition, with the last done run's history. Raises
    OpsError without one, EbbtideError."""
    spec = config.spec_in_force()
    run, statistics, schema = _learned(Store(config.runs), spec)
    partitions = len(await log_ranges(kafka, kafka.topic))
    share = math.ceil(records_max / partitions)
    records = [record async for record in read_topic(kafka, kafka.topic, last=share)]
    parsed = Parser(spec, limits).parse(records)
    events = parsed.events.take(parsed.events.kind != TOMBSTONE)
    rejected = Counter(str(each.reason) for each in parsed.rejected)
    live = span_like(statistics.whole, spec, events) if len(events) >= COUNT_MIN else None
    found = [] if live is None else check_skew(statistics.whole, live, schema)
    return Skew(run, len(records), dict(rejected.most_common()), statistics.whole, live, found)


def _learned(store: Store, spec: Spec) -> tuple[int, Statistics, Schema]:
    """What the last run that came to its end counted and expects."""
    for number in reversed(store.runs()):
        record = store.read_run(number)
        if record["outcome"] != "done":
            continue
        found: list[Any] = []
        for name in ("statistics_gen", "schema_gen"):
            artifact = store.find(name, record["stages"][name]["key"])
            if artifact is None:
                break
            artifact.check()
            try:
                found.append(read_value(artifact.folder, {}))
            except (TypeError, ValueError):  # of an older release
                break
        if len(found) == 2 and set(found[0].whole.kinds) == {kind.name for kind in spec.kinds}:
            return number, found[0], found[1]
        break
    raise OpsError(
        f"no run of {store.root} that came to its end has counted the events of this spec",
        hint="run `ebbtide pipeline run` first",
    )
