"""`ebbtide config show`: what is in force, wherever it was said."""

from pathlib import Path

import click
import yaml

from ebbtide.ops.config.settings import shown
from ebbtide.ops.console import config_option, json_option, settings_of, table_and_json


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
    data = shown(settings_of(config))
    click.echo(yaml.safe_dump(data, sort_keys=False), nl=False)
    table_and_json(None, data, json_path)
