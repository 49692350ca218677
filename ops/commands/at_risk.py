"""`ebbtide at-risk`: what `/v1/at-risk` answers, from Redis alone; no worker and no model is needed."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, load_spec
from ebbtide.model.errors import ModelError
from ebbtide.model.serving.folder import locate
from ebbtide.model.serving.manifest import read_manifest
from ebbtide.ops.asking.at_risk import LIMIT, Order, at_risk
from ebbtide.ops.asking.show import at_risk_table, at_risk_words
from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import console, table_and_json
from ebbtide.ops.errors import SettingsError
from ebbtide.ops.worker.connect import open_state
from ebbtide.stream.outputs.at_risk import floors


@click.command()
@config_option
@click.option("--limit", type=click.IntRange(1, 10_000), default=LIMIT, show_default=True)
@click.option("--min-p", "p_min", type=click.FloatRange(0, 1), default=0.0, show_default=True, metavar="P")
@click.option("--sort", "order", type=click.Choice(["p", "value"]), default="p", show_default=True,
              help="By p, or by p times what the customer is worth.")  # fmt: skip
@click.option("--target", metavar="NAME", help="Of a spec with several.  [default: the first]")
@json_option
def command(
    config: Path | None, limit: int, p_min: float, order: Order, target: str | None, json_path: Path | None
) -> None:
    """Who is most at risk, as of the last decision about each, by one target of the spec."""
    settings = load_settings(config)
    layout = Layout(load_spec(settings.spec))
    try:
        data: dict[str, Any] = asyncio.run(_run(settings, layout, limit, p_min, order, target))
    except ValueError as error:  # the spec has no value, or no such target
        raise SettingsError(str(error), hint="leave --sort or --target out") from None
    table_and_json(at_risk_table(data) if data["customers"] else None, data, json_path)
    console().print(at_risk_words(data), soft_wrap=True)


async def _run(
    settings: Settings, layout: Layout, limit: int, p_min: float, order: Order, target: str | None
) -> dict[str, Any]:
    async with open_state(settings, layout) as store:
        return await at_risk(
            store,
            layout,
            limit=limit,
            p_min=p_min,
            order=order,
            target=target,
            floors=floors_of(settings, layout.spec),
            holdout=settings.policy.held_out,
        )


def floors_of(settings: Settings, spec: Spec) -> Sequence[float]:
    """By target the p from which on customers are listed, as a worker would have it; none where no version is there to
    say so."""
    names = spec.target_names
    if len(names) == 1:  # who is listed is so by this one
        return ()
    try:
        manifest = read_manifest(locate(settings.model))
        if manifest.parsed_spec().target_names != names:
            return ()
        rules = [settings.policy.rules(*manifest.thresholds_of(t), name) for t, name in enumerate(names)]
    except (ModelError, ValueError):  # a worker would refuse it, too
        return ()
    return floors(rules, settings.at_risk_from)
