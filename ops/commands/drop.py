"""`ebbtide drop`: the state that nobody will go back to, deleted."""

import asyncio
from pathlib import Path

import click

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.commands.options import config_option
from ebbtide.ops.commands.rebuild import check
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import Steps, console, steps
from ebbtide.ops.errors import OpsError
from ebbtide.ops.worker.connect import open_store
from ebbtide.stream.kafka.reader import log_ranges


@click.command()
@config_option
@click.option("--prefix", required=True, metavar="OLD", help="redis.prefix of the state to delete.")
@click.option("--yes", is_flag=True, help="Really.")
def command(config: Path | None, prefix: str, yes: bool) -> None:
    """Delete the input topic's state under a prefix that is no longer used, e.g. after `ebbtide rebuild`.

    The configured prefix is refused. A worker that still uses the prefix would make its state again from the log.
    """
    in_use = load_settings(config).redis.prefix
    settings = load_settings(config, options={"redis.prefix": prefix})
    check(settings, in_use)
    with steps() as progress:
        progress("asking Kafka and Redis")
        customers = asyncio.run(_run(settings, yes, progress))
    console().print(f"{customers:,} customers under {prefix!r} are deleted", soft_wrap=True)


async def _run(settings: Settings, yes: bool, progress: Steps) -> int:
    partitions = len(await log_ranges(settings.kafka, settings.kafka.topic))
    layout = Layout(load_spec(settings.spec))
    async with open_store(settings, layout, partitions) as store:
        begun = [number for number in range(partitions) if await _begun(store, number)]
        counts = {number: await store.customers(number) for number in begun}
        customers = sum(counts.values())
        what = f"{len(begun)} partitions of {settings.kafka.topic!r} with {customers:,} customers"
        if not begun:
            raise OpsError(f"there is no state of {settings.kafka.topic!r} under {settings.redis.prefix!r}")
        if not yes:
            raise OpsError(f"{what} would be deleted and cannot be brought back", hint="say --yes")
        progress("deleting")
        done = 0
        for number in begun:
            await store.reset(number)
            done += counts[number]
            progress.advance(done, customers, f"{done:,} customers")
        return customers


async def _begun(store: RedisStore, partition: int) -> bool:
    try:
        return await store.checkpoint(partition) is not None
    except LayoutError:
        return True  # of another time, or a reset that was interrupted: it goes as well
