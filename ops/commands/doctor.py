"""`ebbtide doctor`: a deployment examined, with what to mend."""

import asyncio
from collections import Counter
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from ebbtide.featurestore.check.finding import count
from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.doctor.examination import examine_deployment
from ebbtide.ops.doctor.finding import Finding, Level
from ebbtide.ops.errors import SettingsError
from ebbtide.ops.tensorflow import load_tensorflow
from ebbtide.stream.clock import SystemClock

COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


@click.command()
@config_option
@click.option("--no-model", is_flag=True, help="Do not load the model: it takes some seconds.")
@json_option
def command(config: Path | None, no_model: bool, json_path: Path | None) -> int:
    """Examine Kafka, Redis, the model and the state with the settings of a worker, and say what to mend.

    Nothing is changed, and no group is joined: it may run beside the workers. Exit code 1 when there is an error.
    """
    settings = load_settings(config)
    if settings.local_kafka or settings.local_redis:
        raise SettingsError(
            "there is no deployment to examine: no Kafka or no Redis is configured",
            hint="set EBBTIDE_KAFKA_URL and EBBTIDE_REDIS_URL",
        )
    with steps() as progress:
        if not no_model:
            progress("loading TensorFlow")
            load_tensorflow()
        asked = examine_deployment(
            settings, SystemClock(), model=not no_model, step=lambda what: progress(f"examining {what}")
        )
        found = asyncio.run(asked)
    counts = Counter(each.level for each in found)
    data = {
        "errors": counts[Level.ERROR], "warnings": counts[Level.WARNING],
        "checks": [each._asdict() for each in found],
    }  # fmt: skip
    table_and_json(_table(found), data, json_path)
    said = ", ".join(count(counts[level], level) for level in (Level.ERROR, Level.WARNING))
    console().print(f"{count(len(found), 'check')}: {said}")
    return 1 if counts[Level.ERROR] else 0


def _table(found: list[Finding]) -> Table:
    table = Table("check", "", box=None, pad_edge=False)
    for name in ("found", "what to mend"):
        table.add_column(name, overflow="fold")  # a path, whole
    for check, level, words, remedy in found:
        table.add_row(check, Text(level, style=COLOURS[level]), words, remedy)
    return table
