"""How we talk to Kafka, as settings: where it is, who we are, how long is too long.

It knows numbers and names and the relations between them; it refuses to connect. Invariant: every client of ours is
opened with `KafkaSettings.client()`, so that what holds for one holds for all.
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ebbtide.stream.kafka.security import SaslSettings, TlsSettings, security

URL_SETTING = "EBBTIDE_KAFKA_URL"


class KafkaSettings(BaseModel):
    """Where Kafka is, who we are to it, and how long is too long. Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(description="kafka://host:port[,host:port…], or without the scheme")
    group: str = Field(default="ebbtide", min_length=1)
    topic: str = Field(default="clickstream", min_length=1)
    client_id: str = Field(default="ebbtide", min_length=1)
    # A static member (Kafka's group.instance.id): it keeps its partitions over a restart shorter than the session
    # timeout, and leaves the group only by that timeout. Each worker has its own: a StatefulSet's pod name.
    instance: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,249}$")
    tls: TlsSettings = TlsSettings()
    sasl: SaslSettings = SaslSettings()

    # A worker that dies is noticed after the session timeout, one that hangs after the poll interval.
    session_timeout_s: float = Field(default=10.0, gt=0)
    heartbeat_interval_s: float = Field(default=2.5, gt=0)
    poll_interval_max_s: float = Field(default=300.0, gt=0)
    request_timeout_s: float = Field(default=30.0, gt=0)
    commit_interval_s: float = Field(default=1.0, gt=0)
    # The broker answers as soon as there is one byte; this is how long it may hold a request when there is
    # none. It is also the longest that a partition just opened or resumed waits behind a request that left
    # without it.
    fetch_wait_max_s: float = Field(default=0.1, gt=0)

    fetch_records_max: int = Field(default=1000, ge=1, description="records in one fetched batch")
    fetch_partition_bytes_max: int = Field(default=1 << 20, ge=1024)
    fetch_bytes_max: int = Field(
        default=32 << 20,
        ge=1 << 20,
        description="what the client holds of all partitions together, compressed: of many it asks less each",
    )
    fetch_uncompressed_bytes_max: int = Field(
        default=64 << 20,
        ge=1 << 20,
        description="one record batch, decompressed; a larger one stops its partition",
    )
    fetched_batches_max: int = Field(default=16, ge=1, description="fetches between Kafka and the pipeline")
    produce_bytes_max: int = Field(
        default=16 << 20, ge=1024, description="one record out; topics may say less"
    )

    @field_validator("url")
    @classmethod
    def _has_hosts_and_ports(cls, url: str) -> str:
        if "@" in url:  # not shown: there is a password in it
            raise ValueError(
                f"{URL_SETTING} holds no credentials: set kafka.sasl.username and kafka.sasl.password"
            )
        scheme, found, rest = url.partition("://")
        if found and scheme != "kafka":
            raise ValueError(f"{URL_SETTING} is kafka://host:port[,host:port…], not {url!r}")
        hosts = (rest if found else url).strip("/").split(",")
        for host in hosts:
            name, _, port = host.rpartition(":")
            if not name or not port.isdigit():
                raise ValueError(
                    f"{URL_SETTING} names hosts with ports, like kafka://localhost:9092, not {url!r}"
                )
        return ",".join(hosts)

    @model_validator(mode="after")
    def _all_fits(self) -> Self:
        wrong = [*self.tls.problems(), *self.sasl.problems()]
        if self.heartbeat_interval_s * 3 > self.session_timeout_s:
            wrong.append("session_timeout_s must be at least three heartbeat_interval_s: one may get lost")
        if self.session_timeout_s > self.poll_interval_max_s:
            wrong.append("poll_interval_max_s must not be below session_timeout_s")
        if self.fetch_wait_max_s >= self.request_timeout_s:
            wrong.append("request_timeout_s must be above fetch_wait_max_s")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def client(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client of ours is opened with. Reads the files of `tls`: raises
        BrokerMisconfigured naming the setting whose file, or token function, cannot be used."""
        return {
            "bootstrap_servers": self.url.split(","),
            "client_id": self.client_id,
            "request_timeout_ms": ms(self.request_timeout_s),
            "retry_backoff_ms": 250,  # aiokafka logs every try: an outage should not be four lines each 0.1 s
            **security(self.tls, self.sasl),
        }


def ms(seconds: float) -> int:
    """Milliseconds, at least one: Kafka takes 0 for never."""
    return max(1, round(seconds * 1000))
