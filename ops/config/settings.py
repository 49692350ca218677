"""All settings, from one YAML file and the environment: the one module that reads `os.environ`.

    built-in defaults  <  the file given by --config or EBBTIDE_CONFIG  <  EBBTIDE_* variables  <  command line options

How a variable names a setting stands in `variables.py`, what a secret is and how it is kept in `secrets.py`: any may
also be given by file, as EBBTIDE_REDIS_URL_FILE or `redis: {url_file: …}`. Every problem is reported at once, by the
name a person can change, and no message quotes a secret. Without a URL for Kafka or Redis the command starts that
server itself, locally.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.store.commit import COMMIT_BYTES_MAX, CUSTOMERS_MAX
from ebbtide.featurestore.times.durations import DurationMs, format_duration
from ebbtide.ops.config import variables
from ebbtide.ops.config.secrets import (
    SettingPath,
    by_file,
    drop,
    fill_from_files,
    hidden,
    is_masked,
    masked,
    secret_places,
    secrets_of,
    strings_at,
    texts_of,
)
from ebbtide.ops.config.variables import PREFIX, variable
from ebbtide.ops.errors import SettingsError
from ebbtide.stream.kafka.settings import KafkaSettings

DEFAULT_SPEC = Path(__file__).parents[1] / "specs" / "demo.yaml"
LOCAL = "local:0"
"""Stands for a Kafka URL that is not known yet: the local stack fills it in."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)


class RedisSettings(_Frozen):
    """Where Redis is; `prefix` begins every key; `cache_bytes_max` bounds the hot records a worker keeps."""

    url: SecretStr | None = None
    prefix: str = "ebbtide:"
    timeout_s: float = Field(default=5.0, gt=0)
    connections_max: int = Field(default=16, ge=1)
    cache_bytes_max: int = Field(default=256 << 20, ge=0)


class TopicSettings(_Frozen):
    """The output topics, and how many partitions a topic gets that does not exist yet."""

    alerts: str = "churn-alerts"
    dead_letters: str = "clickstream-dead-letters"
    scores: str | None = None
    partitions: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [name for name in (self.alerts, self.dead_letters, self.scores) if name]
        if len(set(names)) != len(names):
            raise ValueError("alerts, dead_letters and scores must be different topics")
        return self


class PolicySettings(_Frozen):
    """When episodes open and close. `enter` and `exit` come from the model's manifest unless given here."""

    enter: float | None = Field(default=None, gt=0, le=1)
    exit: float | None = Field(default=None, ge=0, le=1)
    dwell_ms: DurationMs = Field(default=0, alias="dwell")
    cooldown_ms: DurationMs = Field(default=7 * 86_400_000, alias="cooldown")


class BatchingSettings(_Frozen):
    """`deadline_s`: a score's due time after its oldest event; `linger_s`: how long an idle scorer waits."""

    deadline_s: float = Field(default=0.05, gt=0)
    linger_s: float = Field(default=0.0, ge=0)
    queued_batches_max: int = Field(default=4, ge=1)
    queued_bytes_max: int = Field(default=64 << 20, ge=1 << 20)


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


class Settings(_Frozen):
    """What a worker needs to know. See `ebbtide config show` for what is in force."""

    spec: Path = DEFAULT_SPEC
    model: Path = Path("models/demo")
    kafka: KafkaSettings = KafkaSettings(url=LOCAL)
    redis: RedisSettings = RedisSettings()
    topics: TopicSettings = TopicSettings()
    policy: PolicySettings = PolicySettings()
    batching: BatchingSettings = BatchingSettings()
    http: HttpSettings = HttpSettings()
    logs: LogSettings = LogSettings()
    alerts_from: Literal["now", "start"] = "now"
    dead_letter_share_max: float = Field(default=0.5, gt=0, le=1)
    record_bytes_max: int = Field(default=64 << 10, ge=1024)
    drain_grace_s: float = Field(default=15.0, gt=0)
    model_watch_s: float = Field(default=5.0, gt=0)

    @model_validator(mode="after")
    def _relations(self) -> Self:
        wrong = []
        if self.kafka.fetch_records_max > CUSTOMERS_MAX:
            wrong.append(
                f"kafka.fetch_records_max must not exceed {CUSTOMERS_MAX}: a batch is one atomic step"
            )
        if "@" in self.kafka.url:
            wrong.append("kafka.url names hosts only: user and password have settings of their own")
        if self.kafka.topic in (self.topics.alerts, self.topics.dead_letters, self.topics.scores):
            wrong.append("kafka.topic is also an output topic: the worker would read its own alerts")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def check_spec(self, spec: Spec) -> None:
        """Raises SettingsError where the policy and the spec do not fit each other."""
        if self.policy.cooldown_ms > spec.memory_ms:
            raise SettingsError(
                f"policy.cooldown {format_duration(self.policy.cooldown_ms)} is longer than the spec's memory"
                f" {format_duration(spec.memory_ms)}: a record would forget it",
                hint="shorten policy.cooldown or lengthen memory",
            )
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
    def local_redis(self) -> bool:
        return self.redis.url is None


SECRETS = secret_places(Settings)


def load_settings(
    file: Path | None = None, environment: Mapping[str, str] | None = None, **options: Any
) -> Settings:
    """Settings in force. `options` are dotted paths to values (`**{"http.port": 0}`); None means not given.

    Raises SettingsError naming every setting that does not fit.
    """
    env = dict(os.environ if environment is None else environment)
    if file is None and env.get(PREFIX + "CONFIG"):
        file = Path(env[PREFIX + "CONFIG"])
    data: dict[str, Any] = _read(file) if file is not None else {}
    in_files = by_file(Settings, SECRETS)
    said, problems = variables.read(env, in_files)
    names = {one.place: one.name for one in said}
    for one in said:
        secret = variables.secret_of(one.place, in_files) or one.place
        if secret in in_files:  # said here in whatever way, the file's own way of saying it counts no more
            drop(data, secret)
        # As text: pydantic reads numbers from it where the setting is one, and a token of digits stays a token.
        _put(data, one.place, one.value)
    for path, value in options.items():
        if value is not None:
            _put(data, tuple(path.split(".")), value)
    problems += fill_from_files(data, in_files, names)
    if isinstance(data.get("kafka"), dict) and data["kafka"].get("url") is None:
        data["kafka"]["url"] = LOCAL
    secrets = strings_at(data, SECRETS)
    problems += [
        f"{names.get(place, '.'.join(place))} is masked, as `ebbtide config show` prints it: give the secret itself"
        for place, text in secrets.items()
        if is_masked(text)
    ]
    settings = None
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        problems += [
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    if settings is None or problems:
        # A URL of Kafka is no secret; one that somebody wrote a password into is refused, and not quoted.
        unseen = [
            *secrets.values(),
            *(url for url in strings_at(data, [("kafka", "url")]).values() if "@" in url),
        ]
        raise SettingsError(
            "settings do not fit: " + hidden("; ".join(problems), texts_of(unseen)),
            hint="change them in --config FILE, or as EBBTIDE_GROUP__NAME",
        )
    return settings


def shown(settings: Settings) -> dict[str, Any]:
    """The settings as plain data for people: durations in words, no secret in it, nothing where nothing is set."""
    data = settings.model_dump(mode="json", by_alias=True)
    data["kafka"]["url"] = None if settings.local_kafka else settings.kafka.url
    for place, secret in secrets_of(settings).items():
        _put(data, place, masked(secret))
    data["policy"] |= {name: format_duration(data["policy"][name]) for name in ("dwell", "cooldown")}
    return data


def for_child(settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """The same settings for a process that we start: plain data for a file, and the secrets, each as a variable, since
    an environment is read by nobody but us, and a file by whoever finds it."""
    data = settings.model_dump(mode="json")
    secrets = secrets_of(settings)
    for place in secrets:
        _put(data, place, None)
    return data, {variable(place): secret for place, secret in secrets.items()}


def quiet_libraries() -> None:
    """Keep what TensorFlow tells its own developers off the terminal: what stops it is raised besides. Before its
    first import, or it has no effect."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def child_environment(**own: str) -> dict[str, str]:
    """Our environment for a process that we start, with `own` as its only EBBTIDE_* variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | own


def _read(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}", hint="give --config FILE") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not text in UTF-8") from None
    # A value that does not fit its tag (`!!int x`, a date of 2026-99-99) is none of PyYAML's own errors.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        raise SettingsError(
            f"{file} is not YAML{_where(error)}",
            hint="quote a value that begins with * & ! or another sign, or holds a colon, 'like this'",
        ) from None
    if not isinstance(data, dict):
        raise SettingsError(f"{file} must hold a mapping of settings")
    return data


def _where(error: Exception) -> str:
    """Where, and not what: the library's own words quote the line, or of `token: *hunter2` the password."""
    mark = getattr(error, "problem_mark", None)
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _put(data: dict[str, Any], path: SettingPath, value: Any) -> None:
    for name in path[:-1]:
        inner = data.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{'.'.join(path)} cannot be set: {name} is not a group of settings")
        data = inner
    data[path[-1]] = value
