"""Options that several commands take, and the types of their values.

DATE         2017-10-01, or RFC 3339 with a time; UTC where no zone is said
DURATION     28d, 36h: as in a spec
"""

import os
from pathlib import Path
from typing import Any

import click

from ebbtide.featurestore.parts.engine import Engine
from ebbtide.featurestore.parts.processes import Processes
from ebbtide.featurestore.parts.spark import Spark
from ebbtide.featurestore.times.durations import parse_duration
from ebbtide.featurestore.times.timestamps import iso_ms


class _Date(click.ParamType):
    name = "DATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return iso_ms(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a date such as 2017-10-01 or 2017-10-01T12:00:00Z", param, ctx)


DATE = _Date()
"""An option's type: ms UTC."""


class _Duration(click.ParamType):
    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = _Duration()
"""An option's type: ms."""


def dates(_ctx: click.Context, _param: click.Parameter, value: str) -> list[int]:
    """An option's callback: dates separated by commas, ascending."""
    return sorted(DATE.convert(part.strip(), _param, _ctx) for part in value.split(",") if part.strip())


def _writable(_ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    """Where figures are to go is known to take them before the work begins."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise click.BadParameter(f"{path} cannot be written")
    return path


json_option = click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", callback=_writable,
    help="Write the same figures to FILE as JSON.",
)  # fmt: skip
events_option = click.option(
    "--events", type=click.Path(path_type=Path), required=True, metavar="FILE", help="CSV, JSONL or Parquet."
)
config_option = click.option(
    "--config", "config", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Settings in YAML; EBBTIDE_* variables and options go before it.",
)  # fmt: skip
jobs_option = click.option(
    "--jobs", type=click.IntRange(1, 64), default=1, show_default=True,
    help="Processes that read files and walk through the history; the result is the same.",
)  # fmt: skip
spark_option = click.option(
    "--spark", metavar="MASTER",
    help="Spark instead: local[2] is this machine, spark://host:7077 a cluster; the result is the same.",
)  # fmt: skip


def engine_of(jobs: int, spark: str | None) -> Engine:
    """Who walks through the history, of both options. Raises click.UsageError."""
    if spark is not None and jobs > 1:
        raise click.UsageError("--jobs and --spark are two answers to one question: give one")
    return Processes(jobs) if spark is None else Spark(spark)
