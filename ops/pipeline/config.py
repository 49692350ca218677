"""The configuration of a pipeline: one YAML file, from which a plan is made. Paths in it are seen from its folder."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.remote import is_remote, mirrored
from ebbtide.featurestore.parts.engine import Engine
from ebbtide.featurestore.parts.processes import Processes
from ebbtide.featurestore.parts.spark import Spark
from ebbtide.featurestore.spec import Spec, dump_spec, load_spec, parse_spec
from ebbtide.featurestore.times.durations import DurationMs
from ebbtide.featurestore.times.timestamps import iso_ms
from ebbtide.model.config import DROPOUT, TrainConfig
from ebbtide.model.factory.plan import Plan, sources_of
from ebbtide.model.factory.schema import Schema, dump_schema, parse_schema
from ebbtide.ops.errors import SettingsError


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Watch(_Frozen):
    """every: how often `pipeline watch` looks for new files. settle: a file that changed less than so long ago is still
    being written. start_on: `files` starts a run when new ones have come; `skew` only when the live topic has moved
    away from the history of the last run, too: told by its last `records`, with the worker's `settings` (a file; else
    the environment)."""

    every_ms: DurationMs = Field(default=60_000, ge=100, alias="every")
    settle_ms: DurationMs = Field(default=5_000, alias="settle")
    start_on: Literal["files", "skew"] = "files"
    records: int = Field(default=100_000, ge=1)
    settings: Path | None = None


class OnSpark(_Frozen):
    """master: as `spark-submit` takes it; local[2] is this machine. parts: of customers, a task each. options: Spark's
    own, such as spark.executor.memory."""

    master: str
    parts: int | None = Field(default=None, ge=1, le=10_000)
    options: dict[str, str] = {}


class PipelineConfig(_Frozen):
    """events: files, folders or patterns, or URLs of S3, GCS or HDFS. out: the folder of models. runs: where artifacts
    and runs lie. schema: a file of expectations; where there is none yet, the inferred one is written there. keep_runs:
    artifacts of older runs are removed. jobs, spark: who reads files and walks through
    the history, processes of this machine or Spark. train: as `TrainConfig`. The rest as `ebbtide train` has it."""

    events: tuple[str, ...]
    spec: Path
    out: Path
    runs: Path
    name: str | None = None
    horizon_ms: DurationMs | None = Field(default=None, alias="horizon")
    labels_until_ms: Annotated[
        int | None, BeforeValidator(lambda said: said if isinstance(said, int | None) else iso_ms(str(said)))
    ] = Field(default=None, alias="labels_until")
    expected: Path | None = Field(default=None, alias="schema")
    spans: int = Field(default=4, ge=2, le=100)
    jobs: int = Field(default=1, ge=1, le=64)
    spark: OnSpark | None = None
    force: bool = False
    keep_runs: int = Field(default=5, ge=1)
    train: TrainConfig = TrainConfig()
    watch: Watch = Watch()

    @field_validator("events", mode="before")
    @classmethod
    def _one_or_many(cls, events: Any) -> Any:
        return (events,) if isinstance(events, str | Path) else events

    @field_validator("spark", mode="before")
    @classmethod
    def _master_alone(cls, said: Any) -> Any:
        return {"master": said} if isinstance(said, str) else said

    @model_validator(mode="before")
    @classmethod
    def _usual_dropout(cls, data: Any) -> Any:
        """A network of other sizes has the training's dropout, unless it says its own."""
        train = data.get("train") if isinstance(data, dict) else None
        if isinstance(train, dict) and isinstance(train.get("network"), dict):
            network = {"dropout": DROPOUT, **train["network"]}
            return {**data, "train": {**train, "network": network}}
        return data

    @model_validator(mode="after")
    def _some_events(self) -> Self:
        if not self.events:
            raise ValueError("events: name at least one file, folder or pattern")
        if self.spark is not None and self.jobs > 1:
            raise ValueError("jobs and spark are two answers to one question: give one")
        return self

    def plan(self) -> Plan:
        """Reads spec, schema and every byte of the events. Raises EbbtideError, OSError."""
        events = self._local_events()
        return Plan(
            spec=self.spec_in_force(),
            events=events,
            sources=sources_of(events),
            out=self.out,
            config=self.train,
            labels_until_ms=self.labels_until_ms,
            schema=self._schema(),
            spans=self.spans,
            engine=self.engine,
            force=self.force,
        )

    @property
    def engine(self) -> Engine:
        if self.spark is None:
            return Processes(self.jobs)
        return Spark(self.spark.master, self.spark.parts, tuple(sorted(self.spark.options.items())))

    def on_spark(self, master: str | None) -> "PipelineConfig":
        """The same on this master instead, with its parts and options; None: as it is."""
        if master is None:
            return self
        there = self.spark or OnSpark(master=master)
        return self.model_copy(update={"jobs": 1, "spark": there.model_copy(update={"master": master})})

    def spec_in_force(self) -> Spec:
        """The spec, with the name and horizon that the configuration gives. Raises SpecError."""
        spec = load_spec(self.spec)
        changes = {"name": self.name, "horizon": self.horizon_ms}
        changed = {key: value for key, value in changes.items() if value is not None}
        return parse_spec({**dump_spec(spec), **changed}) if changed else spec

    def _local_events(self) -> tuple[str, ...]:
        """What lies elsewhere is mirrored among the runs."""
        try:
            return tuple(
                str(mirrored(name, self.runs / "remote")) if is_remote(name) else name for name in self.events
            )
        except SpecError as error:
            raise SpecError(f"stage example_gen: {error.args[0]}", hint=error.hint) from None

    def _schema(self) -> Schema | None:
        if self.expected is None or not self.expected.exists():
            return None
        return parse_schema(self.expected.read_text(encoding="utf-8"), str(self.expected))

    def offer_schema(self, schema: Schema) -> None:
        """Write the inferred one where the configuration says that one is to be, if there is none."""
        if self.expected is not None and not self.expected.exists():
            self.expected.write_text(dump_schema(schema), encoding="utf-8")


def load_config(file: Path) -> PipelineConfig:
    """Raises SettingsError, all problems at once, by name."""
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}", hint="give --config FILE") from None
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{file} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise SettingsError(f"{file} must hold a mapping", hint="events, spec, out and runs at least")
    try:
        return PipelineConfig.model_validate(_seen_from(file.resolve().parent, data))
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'configuration'}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False)
        )
        raise SettingsError(f"{file} does not fit: {said}", hint="README names what there is") from None


def _seen_from(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    def placed(path: Any) -> Any:
        return str(folder / path) if isinstance(path, str) and "://" not in path else path

    found: dict[str, Any] = {
        key: placed(data[key]) for key in ("spec", "out", "runs", "schema") if key in data
    }
    events: Any = data.get("events")
    if isinstance(events, str | list):
        found["events"] = [placed(path) for path in ([events] if isinstance(events, str) else events)]
    watch: Any = data.get("watch")
    if isinstance(watch, dict) and "settings" in watch:
        found["watch"] = {**watch, "settings": placed(watch["settings"])}
    return {**data, **found}
