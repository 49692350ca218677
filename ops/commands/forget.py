"""`ebbtide forget`: a customer erased, whichever partitions hold them."""

import asyncio
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ebbtide.featurestore.events.contract import USER_ID_CHARS_MAX
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.times.durations import format_duration
from ebbtide.ops.commands.options import DURATION, config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.errors import SettingsError
from ebbtide.ops.stack.needed import check_configured
from ebbtide.ops.state.forget import forget, holders, obeyed
from ebbtide.ops.worker.connect import open_store
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import log_ranges


@click.command()
@config_option
@click.argument("customer", metavar="CUSTOMER")
@click.option(
    "--wait", "wait_ms", type=DURATION, default="30s", show_default=True, help="Wait so long for the workers."
)
@click.option(
    "--everywhere", is_flag=True, help="A tombstone into every partition, also those that hold nothing."
)
@json_option
def command(
    config: Path | None, customer: str, wait_ms: int, everywhere: bool, json_path: Path | None
) -> int:
    """Erase CUSTOMER: produce a tombstone into every partition that holds them, and see that it is obeyed.

    Where the spec's customers are several fields, CUSTOMER is all of them joined by / (in a field ~ is written ~0 and
    / is written ~1), or the first one alone, which erases all who begin with it.

    The workers delete the record and pass the tombstone on to every output topic. Exit code 1: after the wait a
    record is still there; the tombstone lies in the topic and is obeyed once a worker comes to it.
    """
    settings = load_settings(config)
    check(settings, customer)
    with steps() as progress:
        progress("asking Kafka and Redis")
        data = asyncio.run(_run(settings, customer, wait_ms / 1000, everywhere))
    table = Table("partition", "held a record", "tombstone", "now", box=None, pad_edge=False)
    for row in data["partitions"]:
        table.add_row(
            str(row["partition"]),
            "yes" if row["held"] else "no",
            "produced",
            "still there" if row["left"] else "gone",
        )
    table_and_json(table, data, json_path)
    if data["left"]:
        console().print(
            f"not yet obeyed after {format_duration(wait_ms)}: no worker has come to it; it is when /v1 answers 404",
            soft_wrap=True,
        )
        return 1
    found = (
        "their record is gone" if data["held"] else "no record was there: nothing was known of this customer"
    )
    console().print(f"{found}; the output topics get the tombstone, too", soft_wrap=True)
    return 0


def check(settings: Settings, customer: str) -> None:
    """Raises SettingsError where there is nobody to ask, or this can be nobody's id."""
    check_configured(settings)
    if not 1 <= len(customer) <= USER_ID_CHARS_MAX:
        raise SettingsError(f"a customer id has 1 to {USER_ID_CHARS_MAX} characters, not {len(customer)}")
    try:
        load_spec(settings.spec).names_first(customer)
    except ValueError as error:
        raise SettingsError(f"{customer!r}: {error}") from None


async def _run(settings: Settings, customer: str, wait_s: float, everywhere: bool) -> dict[str, Any]:
    partitions = len(await log_ranges(settings.kafka, settings.kafka.topic))
    layout = Layout(load_spec(settings.spec))
    spec = layout.spec
    async with open_store(settings, layout, partitions) as store, KafkaSink(settings.kafka) as sink:
        held = await holders(store, spec, customer)
        told = await forget(store, spec, sink, settings.kafka.topic, customer, everywhere=everywhere)
        left = await obeyed(store, spec, customer, wait_s)
    return {
        "held": held, "left": left,
        "partitions": [{"partition": p, "held": p in held, "left": p in left} for p in told],
    }  # fmt: skip
