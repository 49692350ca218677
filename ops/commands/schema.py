"""`ebbtide schema`: the contracts of both ends, for whoever produces events or consumes alerts."""

from pathlib import Path

import click
import orjson

from ebbtide.featurestore.events.contract import event_schema
from ebbtide.featurestore.spec import load_spec
from ebbtide.stream.outputs.alert import alert_schema


@click.group()
def command() -> None:
    """Print the JSON Schema of events or alerts."""


@command.command()
@click.option(
    "--spec", type=click.Path(path_type=Path), metavar="FILE", help="With this spec's mapping and kinds."
)
def event(spec: Path | None) -> None:
    """What a producer sends."""
    _print(event_schema(load_spec(spec)) if spec else event_schema())


@command.command()
def alert() -> None:
    """What a consumer of alerts gets."""
    _print(alert_schema())


def _print(schema: dict[str, object]) -> None:
    click.echo(orjson.dumps(schema, option=orjson.OPT_INDENT_2))
