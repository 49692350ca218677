"""`ebbtide config show`: what is in force, wherever it was said."""

from pathlib import Path
from typing import Any

import click
import yaml

from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.secrets import STARS, put, secrets_of
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import table_and_json


@click.group()
def command() -> None:
    """Show the settings in force."""


@command.command()
@config_option
@json_option
def show(config: Path | None, json_path: Path | None) -> None:
    """All settings as YAML, secrets masked; null where nothing is set.

    The names are those of the file given by --config; as a variable, redis.prefix is EBBTIDE_REDIS__PREFIX.
    """
    data = shown(load_settings(config))
    click.echo(yaml.safe_dump(data, sort_keys=False), nl=False)
    table_and_json(None, data, json_path)


def shown(settings: Settings) -> dict[str, Any]:
    """The settings as plain data for people: durations in words, no secret in it, nothing where nothing is set."""
    data = settings.model_dump(mode="json", by_alias=True)
    data["kafka"]["url"] = None if settings.local_kafka else settings.kafka.url
    for place in secrets_of(settings):
        put(data, place, STARS)
    data["policy"] = settings.policy.shown()
    return data
