"""`ebbtide customers`: how many there are, by partition."""

import asyncio
from pathlib import Path

import click
from rich.table import Table

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import console, table_and_json
from ebbtide.ops.worker.connect import open_state


@click.command()
@config_option
@click.option("--count", "count_only", is_flag=True, help="Print their number and nothing else.")
@json_option
def command(config: Path | None, count_only: bool, json_path: Path | None) -> None:
    """How many customers the store knows, by partition, and how many of them are listed as at risk."""
    settings = load_settings(config)
    counts, listed = asyncio.run(_run(settings, Layout(load_spec(settings.spec))))
    total = sum(counts)
    data = {"customers": total, "at_risk": listed, "by_partition": counts}
    table = Table("partition", "customers", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for partition, n in enumerate(counts):
        table.add_row(str(partition), f"{n:,}")
    table_and_json(None if count_only else table, data, json_path)
    console().print(str(total) if count_only else f"{total:,} customers, {listed:,} listed as at risk")


async def _run(settings: Settings, layout: Layout) -> tuple[list[int], int]:
    async with open_state(settings, layout) as store:
        counts = await store.customers_each(range(store.partitions))
        return counts, (await store.at_risk(0.0, 1)).listed
