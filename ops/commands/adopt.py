"""`ebbtide adopt`: the topic is another one on purpose; the state goes on with it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.commands.options import config_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import console, steps
from ebbtide.ops.errors import OpsError
from ebbtide.ops.stack.needed import check_configured
from ebbtide.ops.state.adopt import Adopted, adopt
from ebbtide.ops.worker.connect import open_store
from ebbtide.stream.kafka.client import topic_id
from ebbtide.stream.kafka.reader import log_ranges


@click.command()
@config_option
@click.option("--yes", is_flag=True, help="Really: the topic holds the same events at the same offsets.")
def command(config: Path | None, yes: bool) -> None:
    """Let the state belong to the input topic as it is now, after a restore or when a mirror took over.

    Stop the workers first. A topic whose events lie at other offsets must not be adopted: rebuild the state from it.
    """
    settings = load_settings(config)
    check_configured(settings)
    with steps() as progress:
        progress("asking Kafka and Redis")
        now, adopted = asyncio.run(_run(settings, yes))
    table = Table("partition", "offset", "belonged to topic", "belongs to topic")
    for each in adopted:
        table.add_row(str(each.partition), f"{each.offset:,}", each.before or "unknown", now)
    console().print(table)


async def _run(settings: Settings, yes: bool) -> tuple[str, Sequence[Adopted]]:
    ranges = await log_ranges(settings.kafka, settings.kafka.topic)
    now = await topic_id(settings.kafka)
    if not now:
        raise OpsError(
            "Kafka does not say which topic this is (brokers before 2.8): there is nothing to adopt",
            hint="workers do not compare topics on such brokers either",
        )
    if not yes:
        raise OpsError(
            f"the state of {settings.kafka.topic!r} under prefix {settings.redis.prefix!r} would belong to topic {now}",
            hint="say --yes when it holds the same events at the same offsets",
        )
    layout = Layout(load_spec(settings.spec))
    async with open_store(settings, layout, len(ranges)) as store:
        return now, await adopt(store, layout, ranges, now)
