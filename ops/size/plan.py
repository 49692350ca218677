"""From a load to machines: `plan(load, costs)`, pure arithmetic whose every step can be read.

workers      one core's worth of events each, half used: the other half is for catching up and for a lost neighbour
partitions   a worker owns several, so that there is room to scale, and to spread over Redis' masters
Redis        all customers at once, twice while it forks to save or to feed a new replica
"""

import math
from dataclasses import dataclass

from ebbtide.ops.size.costs import Costs

GB = 1e9


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for. events_per_s: at the peak. customers: all that the spec's memory holds. alert_share:
    alerts an event. retention_days, replicas: of the input topic. used: share of a worker that the peak may take."""

    events_per_s: float
    customers: float
    alert_share: float = 0.01
    retention_days: float = 7.0
    replicas: int = 3
    used: float = 0.5
    gpu: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes. redis_gb: of data on all masters; redis_masters: of at most MASTER_GB each, and fast enough;
    memory_gb: to give to each of them. kafka_mb_per_s: into the input topic, before replication. hot_key_events_per_s:
    what one customer, and so one partition, may have alone."""

    workers: int
    cores: int
    gpus: int
    partitions: int
    redis_gb: float
    redis_masters: int
    redis_memory_gb: float
    kafka_mb_per_s: float
    kafka_gb: float
    alerts_per_s: float
    worker_memory_gb: float
    catch_up_s: float
    hot_key_events_per_s: float


PARTITIONS_PER_WORKER = 4
PARTITIONS_PER_MASTER = 10
"""A partition is one hash slot: ten a master make their shares even."""
MASTER_GB = 25.0
"""Beyond it, saving and copying to a replica take minutes."""
FORK = 2.0
"""A Redis that saves may hold everything twice."""
MASTER_USED = 0.5
"""Of a master's one thread."""
OUTAGE_S = 600.0
"""An outage whose backlog is to be caught up."""
STANDBY = 1
"""One worker may be lost, or be restarted."""
CORES_PER_WORKER = 2
"""The event loop's, and the scorer's: they overlap."""


def plan(load: Load, costs: Costs) -> Plan:
    """Raises ValueError where a figure is not positive, or nothing is spare."""
    for name in ("events_per_s", "customers", "retention_days", "replicas", "used"):
        if getattr(load, name) <= 0:
            raise ValueError(f"{name} must be above 0, not {getattr(load, name)}")
    if load.used >= 1:
        raise ValueError("used must be below 1: a worker that is full never catches up")
    cpu_us = costs.cpu_us - (costs.score_us if load.gpu else 0.0)
    per_worker = 1e6 / cpu_us
    workers = math.ceil(load.events_per_s / (per_worker * load.used)) + STANDBY
    data_gb = load.customers * costs.customer_bytes / GB
    busy = load.events_per_s * costs.apply_us / 1e6 / MASTER_USED
    masters = max(math.ceil(data_gb / MASTER_GB), math.ceil(busy), 1)
    partitions = _round(
        max(PARTITIONS_PER_WORKER * workers, PARTITIONS_PER_MASTER * masters if masters > 1 else 1)
    )
    kafka_bytes_per_s = load.events_per_s * costs.event_bytes
    spare = (workers - STANDBY) * per_worker - load.events_per_s
    return Plan(
        workers=workers,
        cores=workers * CORES_PER_WORKER,
        gpus=workers if load.gpu else 0,
        partitions=partitions,
        redis_gb=data_gb,
        redis_masters=masters,
        redis_memory_gb=max(data_gb / masters * FORK, 0.1),
        kafka_mb_per_s=kafka_bytes_per_s / 1e6,
        kafka_gb=kafka_bytes_per_s * 86_400 * load.retention_days * load.replicas / GB,
        alerts_per_s=load.events_per_s * load.alert_share,
        worker_memory_gb=costs.worker_bytes / GB * 1.5,
        catch_up_s=OUTAGE_S * load.events_per_s / spare,
        hot_key_events_per_s=per_worker,
    )


def _round(partitions: int) -> int:
    """Up to two digits: partitions can hardly be changed later, so nobody wants 137 of them."""
    size: int = 10 ** max(len(str(partitions)) - 2, 0)
    return math.ceil(partitions / size) * size


LOADS = (
    ("a shop", Load(100, 100_000)),
    ("a large shop", Load(2_000, 2e6)),
    ("a national service", Load(20_000, 20e6)),
    ("a continent's", Load(200_000, 200e6)),
    ("the internet's", Load(2_000_000, 2e9)),
)
"""The table of `ebbtide size` without a load."""
