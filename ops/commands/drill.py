"""`ebbtide drill`: break one thing on this machine and watch."""

import asyncio
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.drill.verdict import Second, Verdict
from ebbtide.stream.clock import SystemClock

NAMES = (
    "kill-worker",
    "hang-redis",
    "kill-redis",
    "kill-broker",
    "bad-model",
    "roll",
    "roll-static",
    "hand-over",
)


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="A folder of versions, of the demo's spec: `make demo` trains one.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(1), default=200.0, show_default=True, help="Events/s.")
@click.option("--customers", type=click.IntRange(1), default=2_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@config_option
@json_option
def command(
    name: str,
    model: Path | None,
    rate: float,
    customers: int,
    seed: int,
    config: Path | None,
    json_path: Path | None,
) -> None:
    """Break one thing while load runs: a line a second of what an operator sees, then what became of the promises.

    Kafka, Valkey and two workers are started here for it, whatever URLs are configured. Exit code 1: a promise broke.
    """
    from ebbtide.ops.drill.faults import FAULTS  # noqa: PLC0415 - brings the local stack, an extra
    from ebbtide.ops.drill.run import drill  # noqa: PLC0415 - the same
    from ebbtide.ops.drill.scene import Scene  # noqa: PLC0415 - the same

    settings, fault = load_settings(config, options={"model": model}), FAULTS[name]
    if not settings.model.is_dir():
        raise click.UsageError(
            f"there is no model in {settings.model}: `make demo` trains one, --model names it"
        )
    out = console()

    def tell(second: Second) -> None:
        ready = sum(not reason for reason in second.not_ready.values())
        words = "; ".join(sorted({reason for reason in second.not_ready.values() if reason})).replace(
            "\n", " "
        )
        refused = f", {second.refused} versions refused" if second.refused else ""
        out.print(
            f"{second.at_s:5.0f} s  {second.phase:6}  {ready} of {len(second.not_ready)} ready"
            f"  lag {second.lag_s:5.1f} s"
            f"  {second.alerts:6,} alerts, the last after {second.last_latency_s:6.3f} s{refused}  {words}",
            soft_wrap=True,
        )

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # servers die: that they are away is no news
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    out.print(f"{fault.words}. Expect: {fault.expect}.")
    with (
        tempfile.TemporaryDirectory(prefix="ebbtide-drill-") as folder,
        steps() as say,
        Scene(settings, Path(folder), say, workers=fault.workers, static=fault.static) as scene,
    ):
        say.end()
        found: Verdict = asyncio.run(drill(scene, fault, rate, customers, seed, SystemClock(), tell))
    shown = Table("promise", "figure", title=name)
    for words, figure in (
        ("customers", found.customers),
        ("scores lost", found.lost_scores),
        ("alerts lost", found.lost_alerts),
        ("alerts that contradict another", found.other_alerts),
        ("alerts sent twice (the same id)", found.repeated_alerts),
        ("scores sent twice", found.repeated_scores),
        ("nobody ready, s at most", f"{found.longest_not_ready_s:.0f}"),
        (
            "latency p50, p99, worst, ms",
            f"{found.latency.p50_ms:,.0f}, {found.latency.p99_ms:,.0f}, {found.latency.max_ms:,.0f}",
        ),
    ):
        shown.add_row(words, f"{figure:,}" if isinstance(figure, int) else str(figure))
    table_and_json(shown, figures(name, found), json_path)
    if not found.kept:
        raise click.ClickException("a promise was broken: something was lost or said otherwise")


def figures(name: str, found: Verdict) -> dict[str, Any]:
    """The verdict under stable names."""
    return {"drill": name, "kept": found.kept, **asdict(found), "latency": found.latency._asdict()}
