"""`ebbtide policy`: what is decided by, and what another policy would have sent on history."""

from pathlib import Path
from typing import Any

import click
import yaml

from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.commands.options import DATE, config_option, events_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import steps, table_and_json
from ebbtide.ops.tensorflow import load_tensorflow

policy_option = click.option(
    "--policy", "policy_path", type=click.Path(path_type=Path), metavar="FILE",
    help="A policy in YAML, instead of the settings' own.",
)  # fmt: skip
model_option = click.option(
    "--model", "model_path", type=click.Path(path_type=Path), metavar="DIR",
    help="A version's folder, or one above it.  [default: the settings']",
)  # fmt: skip


@click.group()
def command() -> None:
    """When episodes open and close, who is told; and what that would have come to."""


@command.command()
@config_option
@policy_option
@click.option(
    "--spec", "spec_path", type=click.Path(path_type=Path), metavar="FILE", help="[default: the settings']"
)
@json_option
def check(
    config: Path | None, policy_path: Path | None, spec_path: Path | None, json_path: Path | None
) -> None:
    """Say whether a policy fits the spec, and show what is in force; null where the model decides."""
    settings = _settings(config, policy_path, None)
    settings.check_spec(load_spec(spec_path or settings.spec))
    data = settings.policy.shown()
    click.echo(yaml.safe_dump(data, sort_keys=False), nl=False)
    table_and_json(None, data, json_path)


@command.command()
@events_option
@config_option
@policy_option
@model_option
@click.option(
    "--from", "from_ms", type=DATE, help="Count from here.  [default: where the model's labels end]"
)
@click.option(
    "--per-day",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Propose `enter` for so many episodes a day.",
)
@click.option(
    "--value",
    type=click.FloatRange(0, min_open=True),
    metavar="V",
    help="What a customer who is kept is worth: propose for the greatest gain.",
)
@click.option(
    "--cost", type=click.FloatRange(0), default=0.0, metavar="C", help="What a contact costs, as --value."
)
@click.option(
    "--saved",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    metavar="SHARE",
    help="Of those rightly contacted, who stay.",
)
@click.option(
    "--plots", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Draw plots there."
)
@json_option
def simulate(
    events: Path, config: Path | None, policy_path: Path | None, model_path: Path | None, from_ms: int | None,
    per_day: float | None, value: float | None, cost: float, saved: float, plots: Path | None, json_path: Path | None,
) -> None:  # fmt: skip
    """What a policy would have sent on a log of events, without servers.

    The log is folded and scored once, by the model's own spec; then the policy in force and the one of --policy decide
    it. Proposals are found by trying other values of `enter` on the same log: choose on one part of history, and look
    with --from at a later one.
    """
    with steps() as progress:
        progress("loading TensorFlow")
        load_tensorflow()
        from ebbtide.ops.policy.command import Asked, run  # noqa: PLC0415 - loaded quietly above

        present, other = _settings(config, None, model_path), _settings(config, policy_path, model_path)
        tables, data = run(
            present, other, Asked(events, from_ms, per_day, value, cost, saved, plots), progress
        )
    table_and_json(tables, data, json_path)


def _settings(config: Path | None, policy_path: Path | None, model_path: Path | None) -> Settings:
    options: dict[str, Any] = {"policy": {"file": str(policy_path)}} if policy_path else {}
    return load_settings(config, options={**options, **({"model": str(model_path)} if model_path else {})})
