"""`ebbtide schema`: the contracts of all topics, for whoever produces events or consumes what we say.

They are generated from the models that read and write. `ebbtide schema write ops/schemas` makes the published files
anew; a test holds them against the models.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import orjson

from ebbtide.featurestore.events.contract import event_schema
from ebbtide.featurestore.spec import load_spec
from ebbtide.stream.outputs.alert import alert_schema
from ebbtide.stream.outputs.audit import audit_schema
from ebbtide.stream.outputs.dead_letter import dead_letter_schema
from ebbtide.stream.outputs.scores import score_schema

SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "event": event_schema,
    "alert": alert_schema,
    "dead-letter": dead_letter_schema,
    "score": score_schema,
    "audit": audit_schema,
}


@click.group()
def command() -> None:
    """Print the JSON Schema of events, alerts, dead letters, scores or audit records."""


@command.command()
@click.option(
    "--spec", type=click.Path(path_type=Path), metavar="FILE", help="With this spec's mapping and kinds."
)
def event(spec: Path | None) -> None:
    """What a producer sends."""
    click.echo(text(event_schema(load_spec(spec)) if spec else event_schema()), nl=False)


@command.command()
def alert() -> None:
    """What a consumer of alerts gets."""
    click.echo(text(alert_schema()), nl=False)


@command.command()
def dead_letter() -> None:
    """The headers of a dead letter."""
    click.echo(text(dead_letter_schema()), nl=False)


@command.command()
def score() -> None:
    """What a consumer of scores gets."""
    click.echo(text(score_schema()), nl=False)


@command.command()
def audit() -> None:
    """What an alert was decided on."""
    click.echo(text(audit_schema()), nl=False)


@command.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def write(folder: Path) -> None:
    """Write all of them into FOLDER, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in SCHEMAS.items():
        (folder / f"{name}.json").write_text(text(schema()), encoding="utf-8")
        click.echo(folder / f"{name}.json")


def text(schema: dict[str, Any]) -> str:
    """A schema as its file holds it."""
    return orjson.dumps(schema, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
