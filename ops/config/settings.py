"""All settings in their groups, with their defaults and the relations between them.

Where they are said stands in `load.py`, how a variable names one in `variables.py`, what a secret is in `secrets.py`.
Without a URL for Kafka or Redis the command starts that server itself, locally. A URL names places only: users and
passwords have settings of their own, so that there is never a secret to be found within another text.
"""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ebbtide.featurestore.events.parse import ParseLimits
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.store.commit import COMMIT_BYTES_MAX, CUSTOMERS_MAX
from ebbtide.featurestore.store.redis.credentials import Credentials, in_url
from ebbtide.featurestore.store.redis.names import SECRET_CHARS_MIN
from ebbtide.featurestore.times.durations import DAY_MS, DurationMs
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.errors import SettingsError
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.turn.timers import TimerLimits

DEFAULT_SPEC = Path(__file__).parents[1] / "specs" / "demo.yaml"
RETENTION_MS_MIN = 4_000
LOCAL = "local:0"
"""Stands for a Kafka URL that is not known yet: the local stack fills it in."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)


class SentinelSettings(_Frozen):
    """Who we are to the Sentinels, where they ask."""

    username: str | None = None
    password: SecretStr | None = None


class RedisSettings(_Frozen):
    """Where Redis is and who we are to it; `key_password` opens the URL's `ssl_keyfile`; `prefix` begins every key;
    `customer_key` hides customers' ids there (`openssl rand -hex 32`): all workers and commands need the same one, and
    a state made under another one has to be made anew. `cache_bytes_max` bounds the hot records a worker keeps."""

    url: str | None = None
    username: str | None = None
    password: SecretStr | None = None
    key_password: SecretStr | None = None
    sentinel: SentinelSettings = SentinelSettings()
    prefix: str = "ebbtide:"
    customer_key: SecretStr | None = None
    timeout_s: float = Field(default=5.0, gt=0)
    connections_max: int = Field(default=16, ge=1)
    cache_bytes_max: int = Field(default=256 << 20, ge=0)

    @field_validator("url")
    @classmethod
    def _holds_no_credentials(cls, url: str | None) -> str | None:
        if url is not None and in_url(url):  # not shown: there is a password in it
            raise ValueError(
                "EBBTIDE_REDIS_URL holds no credentials: set redis.username and redis.password, for Sentinels"
                " redis.sentinel.username and redis.sentinel.password, for a key file redis.key_password"
            )
        return url

    @field_validator("customer_key")
    @classmethod
    def _is_of_chance(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < SECRET_CHARS_MIN:
            raise ValueError(f"at least {SECRET_CHARS_MIN} characters of chance: openssl rand -hex 32")
        return key

    def credentials(self) -> Credentials:
        """For the client that connects."""
        return Credentials(
            self.username, _plain(self.password), self.sentinel.username, _plain(self.sentinel.password),
            _plain(self.key_password),
        )  # fmt: skip


class TopicSettings(_Frozen):
    """The output topics, and how many partitions a topic gets that does not exist yet.

    `alerts_retention`, `dead_letters_retention`: after so long at the latest nothing of a record is left in the topic;
    of the scores' topic, nothing of a score that was superseded or forgotten (as for alerts). It is how long an erasure
    takes: a tombstone cannot reach what lies in a topic. What `dlq replay` remembers of a topic Kafka keeps for 7 days.
    `create_input`: an input topic that is not there is made; false refuses that: no mistyped name becomes one.
    """

    alerts: str = "churn-alerts"
    dead_letters: str = "clickstream-dead-letters"
    scores: str | None = None
    audit: str | None = None
    partitions: int = Field(default=4, ge=1)
    create_input: bool = True
    alerts_retention_ms: DurationMs = Field(
        default=28 * DAY_MS, ge=RETENTION_MS_MIN, alias="alerts_retention"
    )
    dead_letters_retention_ms: DurationMs = Field(
        default=7 * DAY_MS, ge=RETENTION_MS_MIN, alias="dead_letters_retention"
    )

    audit_retention_ms: DurationMs = Field(default=7 * DAY_MS, ge=RETENTION_MS_MIN, alias="audit_retention")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [name for name in (self.alerts, self.dead_letters, self.scores, self.audit) if name]
        if len(set(names)) != len(names):
            raise ValueError("alerts, dead_letters, scores and audit must be different topics")
        return self


class AlertSettings(_Frozen):
    """`exactly_once`: alerts and the committed offset in one Kafka transaction, so that who reads committed records
    (isolation.level=read_committed) sees each alert once; else at least once, with the same id, in order."""

    exactly_once: bool = False


class BatchingSettings(_Frozen):
    """`deadline_s`: a score's due time after its oldest event; `linger_s`: how long an idle scorer waits."""

    deadline_s: float = Field(default=0.05, gt=0)
    linger_s: float = Field(default=0.0, ge=0)
    queued_batches_max: int = Field(default=4, ge=1)
    queued_bytes_max: int = Field(default=64 << 20, ge=1 << 20)


class TimerSettings(_Frozen):
    """When a silence is taken. `lateness_max`: how late an event may come before its customer's silence counts.
    `source_quiet_max`: a topic without a record for so long has lost its producers, and nobody's silence counts.
    `source_share_min`: a partition that brings less than this share of what is usual at that hour of the week, by two
    weeks and more, has lost some of its producers, and no silence counts there; 0: as little as it likes.
    `customers_per_s_max`: who became due during a downtime is taken no faster by one worker. `clock`: the wall's; of a
    replay the log's own, `event`; `off`: only a customer's next event tells that they were silent."""

    lateness_max_ms: DurationMs = Field(default=5 * 60_000, alias="lateness_max")
    source_quiet_max_ms: DurationMs = Field(default=30 * 60_000, alias="source_quiet_max")
    source_share_min: float = Field(default=0.2, ge=0, lt=1)
    customers_per_s_max: int = Field(default=2_000, ge=1)
    clock: Literal["wall", "event", "off"] = "wall"

    def limits(self) -> TimerLimits:
        """For the worker."""
        return TimerLimits(
            self.lateness_max_ms, self.source_quiet_max_ms, self.customers_per_s_max, self.clock,
            self.source_share_min,
        )  # fmt: skip


class HttpSettings(_Frozen):
    """Loopback unless told otherwise. Port 0 takes a free one. `token` is demanded of /v1 when set; `connections_max`
    bounds the open connections, and with them what is asked at once."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    token: SecretStr | None = None
    connections_max: int = Field(default=64, ge=1)

    @field_validator("token")
    @classmethod
    def _fits_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not re.fullmatch(r"[!-~]+", token.get_secret_value()):
            raise ValueError("the token travels in a header: one or more ASCII signs, none of them a space")
        return token


class LogSettings(_Frozen):
    level: Literal["debug", "info", "warning", "error"] = "info"
    form: Literal["json", "text"] = "json"


class TraceSettings(_Frozen):
    """Turns as OpenTelemetry traces, off without `url`: a collector's OTLP/HTTP address (http://collector:4318).
    `share`: of the turns that are kept; an alert's span is kept when the trace of its record is. `authorization`: the
    header's value, where the collector asks for one. Needs the extra `traces`."""

    url: str | None = None
    share: float = Field(default=0.05, ge=0, le=1)
    authorization: SecretStr | None = None

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", url):
            raise ValueError("an address like http://collector:4318, without user or password")
        return url


class Settings(_Frozen):
    """What a worker needs to know. See `ebbtide config show` for what is in force.

    `model`: a model's folder, or a version's, which is then served whatever else appears. `model_key`: signs manifests;
    when set, an unsigned version is refused. `at_risk_from`: the p from which on customers are listed as at risk, by
    default the policy's `exit`. `compiled`: a folder of our own (0700) where compiled programs are kept.
    """

    spec: Path = DEFAULT_SPEC
    model: Path = Path("models/demo")
    model_key: SecretStr | None = None
    kafka: KafkaSettings = KafkaSettings(url=LOCAL)
    redis: RedisSettings = RedisSettings()
    topics: TopicSettings = TopicSettings()
    alerts: AlertSettings = AlertSettings()
    policy: PolicySettings = PolicySettings()
    batching: BatchingSettings = BatchingSettings()
    timers: TimerSettings = TimerSettings()
    http: HttpSettings = HttpSettings()
    logs: LogSettings = LogSettings()
    traces: TraceSettings = TraceSettings()
    alerts_from: Literal["now", "start"] = "now"
    at_risk_from: float | None = Field(default=None, ge=0, le=1)
    dead_letter_share_max: float = Field(default=0.5, gt=0, le=1)
    record_bytes_max: int = Field(default=64 << 10, ge=1024)
    drain_grace_s: float = Field(default=15.0, gt=0)
    model_watch_s: float = Field(default=5.0, gt=0)
    compiled: Path = Path.home() / ".cache" / "ebbtide" / "xla"

    @model_validator(mode="after")
    def _relations(self) -> Self:
        wrong = []
        if self.kafka.fetch_records_max > CUSTOMERS_MAX:
            wrong.append(
                f"kafka.fetch_records_max must not exceed {CUSTOMERS_MAX}: a batch is one atomic step"
            )
        if "@" in self.kafka.url:
            wrong.append("kafka.url names hosts only: user and password have settings of their own")
        if self.kafka.topic in (
            self.topics.alerts,
            self.topics.dead_letters,
            self.topics.scores,
            self.topics.audit,
        ):
            wrong.append("kafka.topic is also an output topic: the worker would read its own alerts")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def check_spec(self, spec: Spec) -> None:
        """Raises SettingsError where the policy and the spec do not fit each other."""
        self.policy.check_spec(spec)
        records, record_bytes = self.kafka.fetch_records_max, Layout(spec).itemsize
        if records * record_bytes > COMMIT_BYTES_MAX // 2:  # the other half is for the step's alerts
            raise SettingsError(
                f"a batch of {records:,} customers with records of {record_bytes:,} bytes is more than one atomic step"
                f" may hold ({COMMIT_BYTES_MAX // 2:,} bytes of records)",
                hint="fewer tiles or windows in the spec, or a smaller kafka.fetch_records_max",
            )

    @property
    def local_kafka(self) -> bool:
        """No Kafka was configured: a local one is to be started."""
        return self.kafka.url == LOCAL

    @property
    def parse_limits(self) -> ParseLimits:
        """What a record may be: whoever reads the input topic takes and refuses what a worker does."""
        return ParseLimits(value_bytes_max=self.record_bytes_max)

    @property
    def local_redis(self) -> bool:
        return self.redis.url is None


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
