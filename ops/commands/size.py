"""`ebbtide size`: how many workers, partitions and gigabytes a load needs."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import click
from rich.table import Table

from ebbtide.ops.console import console
from ebbtide.ops.size.costs import MEASURED, Costs
from ebbtide.ops.size.plan import LOADS, Load, Plan, plan

POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option("--events-per-s", type=POSITIVE, metavar="N", help="At the peak.")
@click.option("--customers", type=POSITIVE, metavar="N", help="That the spec's memory holds.")
@click.option("--gpu", is_flag=True, help="Workers with a GPU each.")
@click.option("--used", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.5, show_default=True,
              help="Share of a worker that the peak may take.")  # fmt: skip
@click.option("--retention-days", type=POSITIVE, default=7.0, show_default=True, help="Of the input topic.")
@click.option("--bench", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Unit costs of your machine: what `make bench ARGS='--json FILE'` wrote.")  # fmt: skip
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the figures there."
)
def command(
    events_per_s: float | None,
    customers: float | None,
    gpu: bool,
    used: float,
    retention_days: float,
    bench: Path | None,
    json_file: Path | None,
) -> None:
    """Workers, partitions, Redis and Kafka for a load; without one, a table from a shop to the internet.

    Half of each worker is kept free for catching up, and one worker more for a restart. The unit costs are measured;
    see ops/size/costs.py.
    """
    if (events_per_s is None) != (customers is None):
        raise click.UsageError("--events-per-s and --customers go together")
    costs = costs_of(bench) if bench else MEASURED
    loads = [("yours", Load(events_per_s, customers))] if events_per_s and customers else list(LOADS)
    loads = [(name, replace(load, gpu=gpu, used=used, retention_days=retention_days)) for name, load in loads]
    plans = [(name, load, plan(load, costs)) for name, load in loads]
    console().print(table(plans))
    if json_file:
        told = [{"name": name, **asdict(load), **asdict(planned)} for name, load, planned in plans]
        json_file.write_text(json.dumps({"costs": asdict(costs), "plans": told}, indent=2) + "\n")


def costs_of(bench: Path) -> Costs:
    """Unit costs of a run of `make bench`; what it does not say stays as it was measured."""
    try:
        found = json.loads(bench.read_text())
        ours = found["ours"]
        return replace(
            MEASURED, cpu_us=float(found["cpu_us"]), score_us=float(ours["parts_us"]["score"]),
            apply_us=1e6 * float(ours["cores"]["redis"]) / float(ours["events_per_s"]),
            worker_bytes=float(ours["rss_bytes_max"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise click.UsageError(f"{bench} is not what `make bench` writes: it has no {error}") from error


ROWS = (
    ("events/s at the peak", lambda load, _: f"{load.events_per_s:,.0f}"),
    ("customers", lambda load, _: f"{load.customers:,.0f}"),
    ("workers", lambda _, p: f"{p.workers:,}"),
    ("cores", lambda _, p: f"{p.cores:,}"),
    ("GPUs", lambda _, p: f"{p.gpus:,}"),
    ("memory a worker, GB", lambda _, p: f"{p.worker_memory_gb:.1f}"),
    ("partitions", lambda _, p: f"{p.partitions:,}"),
    ("Redis: data, GB", lambda _, p: f"{p.redis_gb:,.1f}"),
    ("Redis: masters", lambda _, p: f"{p.redis_masters:,}"),
    ("Redis: memory a master, GB", lambda _, p: f"{p.redis_memory_gb:,.1f}"),
    ("Kafka: into the topic, MB/s", lambda _, p: f"{p.kafka_mb_per_s:,.1f}"),
    ("Kafka: on disks, GB", lambda _, p: f"{p.kafka_gb:,.0f}"),
    ("alerts/s", lambda _, p: f"{p.alerts_per_s:,.0f}"),
    ("caught up after ten minutes' outage, s", lambda _, p: f"{p.catch_up_s:,.0f}"),
    ("one customer alone, events/s at most", lambda _, p: f"{p.hot_key_events_per_s:,.0f}"),
)


def table(plans: list[tuple[str, Load, Plan]]) -> Table:
    """A column a load."""
    shown = Table("", *(name for name, _, _ in plans))
    for words, say in ROWS:
        shown.add_row(words, *(say(load, planned) for _, load, planned in plans))
    return shown
