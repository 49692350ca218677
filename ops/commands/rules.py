"""`ebbtide rules`: Prometheus' recording and alerting rules."""

import click

from ebbtide.ops.alerting.duration import Scale
from ebbtide.ops.alerting.rules import RUNBOOK, text


@click.command()
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              metavar="FACTOR", help="Multiplies every window: 0.001 makes an hour 3.6 s.")  # fmt: skip
@click.option("--least-s", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS",
              help="No window is shorter: at least four scrapes.")  # fmt: skip
@click.option("--runbook", default=RUNBOOK, show_default=True, metavar="URL", help="Where the pages are.")
def command(scale: float, least_s: float, runbook: str) -> None:
    """Print Prometheus' rules: two objectives with their burn rates, and symptoms."""
    click.echo(text(Scale(scale, least_s), runbook), nl=False)
