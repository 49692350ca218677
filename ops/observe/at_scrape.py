"""What is so *now*, asked when somebody looks: lag, stalls, readiness, the model, the servers.

A figure noted at the last turn says nothing when there is no next one: a partition that is stuck would show the lag of
its last good moment.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from ebbtide.ops.state.room import Room
from ebbtide.stream.telemetry import Lag

SERVERS = ("Kafka", "Redis")
READY = ("ebbtide_ready", "1 when /readyz says so.")
"""Name and words of the metric."""


class ModelNow(NamedTuple):
    """The version in service. loaded_s: Unix time at which it began to serve; warm: compiled in all its sizes."""

    name: str
    version: int
    loaded_s: float = 0.0
    warm: bool = True


class AtScrape(Collector):
    """Its attributes are whom to ask; each may be missing, and its series with it."""

    def __init__(self) -> None:
        self.not_ready: Callable[[], Sequence[str]] | None = None
        """Why the worker is not ready, a sentence each."""
        self.model: Callable[[], ModelNow] | None = None
        self.refused: Callable[[], int] | None = None
        """Model versions that cannot be served."""
        self.lags: Callable[[], Mapping[int, Lag]] | None = None
        self.states: Callable[[], Mapping[int, tuple[str, str]]] | None = None
        """By partition: the name of its state, and the error class that it is in for, or nothing."""
        self.away: Callable[[], Iterable[str]] | None = None
        """The servers that do not answer, of SERVERS."""
        self.call_age_s: Callable[[], float] | None = None
        """Seconds since the call of the model under way began."""
        self.memory: Callable[[], Mapping[str, Room]] | None = None
        """By Redis server."""
        self.customers: int | None = None
        """In the partitions of ours, when last counted."""
        self.device: Callable[[], tuple[str, int | None]] | None = None
        """Where the model is, and the bytes that it holds there where the device can say."""
        self.seen_lag: dict[int, int] = {}
        """Of the last turn, for whoever has no better answer."""

    def describe(self) -> Iterable[Metric]:
        return ()  # the registry need not ask for values to learn the names

    def collect(self) -> Iterable[Metric]:
        if self.not_ready is not None:
            yield _gauge(*READY, not self.not_ready())
        yield from self._model()
        yield from self._servers()
        if self.call_age_s is not None:
            yield _gauge(
                "ebbtide_scorer_call_age_seconds",
                "Seconds that the call of the model under way has taken so far, 0 when there is none.",
                self.call_age_s(),
            )
        if self.customers is not None:
            yield _gauge("ebbtide_customers", "Customers in the partitions of this worker.", self.customers)
        if self.device is not None:
            name, held = self.device()
            yield InfoMetricFamily("ebbtide_device", "Where the model computes.", value={"device": name})
            if held is not None:
                yield _gauge("ebbtide_device_memory_bytes", "Memory held on the device.", held)
        yield from self._lags()
        if self.states is not None:
            state = GaugeMetricFamily(
                "ebbtide_partition_state",
                "1 for the state that a partition is in, and the error that it is in for.",
                labels=["partition", "state", "reason"],
            )
            for partition, (name, reason) in self.states().items():
                state.add_metric([str(partition), name, reason], 1.0)
            yield state

    def summary(self) -> dict[str, Any]:
        """The few of these that a person looks at first, for the page."""
        reasons = list(self.not_ready()) if self.not_ready is not None else ["it starts"]
        model = self.model() if self.model is not None else ModelNow("–", 0)
        lags = self.lags() if self.lags is not None else {}
        return {
            "ready": not reasons,
            "reasons": reasons,
            "model": model.name,
            "version": model.version,
            "partitions": len(lags),
            "lag_s": max((lag.behind_s for lag in lags.values()), default=0.0),
        }

    def _model(self) -> Iterable[Metric]:
        if self.model is not None:
            now = self.model()
            yield _gauge("ebbtide_model_version", "Version of the model in service.", now.version)
            said = {"name": now.name, "version": str(now.version)}
            yield InfoMetricFamily("ebbtide_model", "The model in service.", value=said)
            yield _gauge(
                "ebbtide_model_loaded_timestamp_seconds", "When the version in service began to serve.", now.loaded_s
            )  # fmt: skip
            yield _gauge(
                "ebbtide_model_warm", "1 when the version in service is compiled in all sizes.", now.warm
            )
        if self.refused is not None:
            yield _gauge(
                "ebbtide_model_versions_refused",
                "Versions above the one in service that cannot be served, and 1 for a folder that cannot be looked at.",
                self.refused(),
            )

    def _servers(self) -> Iterable[Metric]:
        if self.away is not None:
            away = set(self.away())
            up = GaugeMetricFamily(
                "ebbtide_server_up", "1 when the server answered the last small question.", labels=["server"]
            )
            for server in SERVERS:
                up.add_metric([server], float(server not in away))
            yield up
        if self.memory is not None:
            used = GaugeMetricFamily("ebbtide_redis_memory_used_bytes", "Memory of Redis.", labels=["server"])
            most = GaugeMetricFamily(
                "ebbtide_redis_memory_max_bytes", "Its maxmemory, where it has one.", labels=["server"]
            )
            for server, memory in self.memory().items():
                used.add_metric([server], memory.used_bytes)
                if memory.max_bytes is not None:
                    most.add_metric([server], memory.max_bytes)
            yield from (used, most)

    def _lags(self) -> Iterable[Metric]:
        records = _by_partition("ebbtide_partition_lag_records", "Offsets between position and log end.")
        if self.lags is None:
            for partition, n in self.seen_lag.items():
                records.add_metric([str(partition)], n)
            yield records
            return
        behind = _by_partition(
            "ebbtide_partition_lag_seconds", "Age of the oldest record that is not committed, 0 without one."
        )
        blocked = _by_partition(
            "ebbtide_partition_blocked_records",
            "Offsets of the lag behind an open transaction of a producer.",
        )
        stalled = _by_partition(
            "ebbtide_partition_stalled_seconds",
            "Seconds since the last progress, of a partition with records.",
        )
        for partition, lag in self.lags().items():
            for family, value in zip((records, blocked, stalled, behind), lag, strict=True):
                family.add_metric([str(partition)], value)
        yield from (records, behind, blocked, stalled)


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, words, value=float(value))


def _by_partition(name: str, words: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, words, labels=["partition"])
