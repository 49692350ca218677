"""`ebbtide demo`: everything on this machine. The play stands in `ops/demo/`."""

from pathlib import Path

import click

from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.demo.run import demo
from ebbtide.ops.demo.scene import Plan


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(5),
    default=Plan().seconds,
    show_default=True,
    help="How long the show lasts.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=Plan().seed,
    show_default=True,
    help="Other customers, other lives.",
)
@click.option(
    "--customers",
    type=click.IntRange(100),
    default=Plan().live_customers,
    show_default=True,
    help="Live ones.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/demo"), show_default=True,
    metavar="DIR", help="Where model, alerts and logs are left.",
)  # fmt: skip
@config_option
@json_option
def command(
    seconds: float, seed: int, customers: int, out: Path, config: Path | None, json_path: Path | None
) -> None:
    """Train on simulated customers, stream others live, alert, and compare with what they really did.

    Ctrl-C ends the show early and still judges it. Without a URL for Kafka or Redis, both are started here.
    """
    plan = Plan(seed=seed, seconds=seconds, live_customers=customers)
    demo(plan, load_settings(config), out, json_path)
