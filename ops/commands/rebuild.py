"""`ebbtide rebuild`: a state made again under a new prefix, beside the worker, for a new spec or model."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import Steps, console, steps, table_and_json
from ebbtide.ops.errors import SettingsError
from ebbtide.ops.stack.needed import check_configured
from ebbtide.ops.state.plan import plan
from ebbtide.ops.state.rebuild import Counts, ForbiddenSink, Rebuild, Rebuilt
from ebbtide.ops.state.room import check_room, watch_room
from ebbtide.ops.tensorflow import load_tensorflow
from ebbtide.ops.worker.connect import open_store
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.committed_log import open_committed_log


@click.command()
@config_option
@click.option("--prefix", required=True, metavar="NEW", help="redis.prefix of the new state, e.g. ebbtide2:")
@click.option("--spec", type=click.Path(path_type=Path), metavar="FILE", help="The new feature spec in YAML.")
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the new model's versions."
)
@click.option("--force", is_flag=True, help="Begin although Redis may have no room for a second state.")
@click.option("--follow", is_flag=True, help="Stay close to the committed offset until Ctrl-C.")
@json_option
def command(
    config: Path | None,
    prefix: str,
    spec: Path | None,
    model: Path | None,
    force: bool,
    follow: bool,
    json_path: Path | None,
) -> None:
    """Fold the retained log again, under a new prefix, beside the workers.

    Nothing is sent. The second state is as large as the first: it is refused where Redis has no room for it, and stops
    before it takes what the workers need. It ends when every partition is where the group is; then redis.prefix (and
    spec and model) is switched. Interrupted, it goes on where it was when it is called again.
    """
    old = load_settings(config)
    settings = load_settings(config, options={"spec": spec, "model": model, "redis.prefix": prefix})
    check(settings, old.redis.prefix)
    layout = Layout(load_spec(settings.spec))
    settings.check_spec(layout.spec)
    with steps() as progress:
        progress("asking Kafka and Redis")
        asyncio.run(
            _plan(settings, layout, old.redis.prefix, force)
        )  # a wrong prefix need not wait for TensorFlow
        progress("loading the model")
        load_tensorflow()
        done, customers, model_version, seconds = asyncio.run(_run(settings, layout, follow, progress))
    data = as_json(settings, layout, done, customers, model_version, seconds)
    table_and_json(_table(data), data, json_path)
    console().print(
        f"The state under {prefix!r} is made up to the group's committed offset. Now set redis.prefix to {prefix!r}"
        f" (with spec {settings.spec} and model {settings.model}) and roll the workers: they catch up silently.\n"
        f"To go back, set {old.redis.prefix!r} with its spec and model again: that state catches up the same way.\n"
        f"When nobody will: ebbtide drop --prefix {old.redis.prefix!r} --yes",
        soft_wrap=True,
    )


def check(settings: Settings, in_use: str) -> None:
    """Raises SettingsError where a second state could not be told from the first, or there is nothing to read."""
    check_configured(settings)
    if settings.redis.prefix == in_use:
        raise SettingsError(
            f"{in_use!r} is the configured redis.prefix: its state is in use",
            hint="name another prefix",
        )


async def _plan(settings: Settings, layout: Layout, in_use: str, force: bool) -> None:
    redis = settings.redis.model_copy(update={"prefix": in_use})
    async with (
        open_committed_log(settings.kafka) as settled,
        open_store(settings, layout, settled.partitions) as store,
        open_store(settings.model_copy(update={"redis": redis}), layout, settled.partitions) as old,
    ):
        await plan(settled, store, settings.kafka.group, layout.id)
        if not force:
            await check_room(store, old)


async def _run(
    settings: Settings, layout: Layout, follow: bool, progress: Steps
) -> tuple[list[Rebuilt], dict[int, int], int, float]:
    from ebbtide.ops.worker.compose import load_slot, tools_of  # noqa: PLC0415 - brings TensorFlow, which is loaded quietly above

    slot, clock = await asyncio.to_thread(load_slot, settings, layout), SystemClock()
    counts = Counts()
    async with (
        open_committed_log(settings.kafka) as settled,
        open_store(settings, layout, settled.partitions) as store,
    ):
        begun = await plan(settled, store, settings.kafka.group, layout.id)
        tools = await tools_of(settings, layout, slot, store, ForbiddenSink(), counts)
        share_max = settings.dead_letter_share_max
        rebuild = Rebuild(settled, tools, counts, begun, dead_letter_share_max=share_max)
        if follow:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, rebuild.stop)
        progress("rebuilding")
        began_s = clock.monotonic_s()
        watching = asyncio.create_task(watch_room(store, rebuild.stop), name="room")
        try:
            done = await rebuild.run(progress.advance, follow=follow)
            if watching.done():
                watching.result()  # it was stopped for want of room
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            tools.batcher.close()
        customers = {one.partition: await store.customers(one.partition) for one in done}
        return done, customers, slot.current.version, clock.monotonic_s() - began_s


def as_json(
    settings: Settings,
    layout: Layout,
    done: list[Rebuilt],
    customers: dict[int, int],
    version: int,
    seconds: float,
) -> dict[str, Any]:
    """The figures under the names that `ops/REPORTS.md` lists."""
    records = sum(one.records for one in done)
    return {
        "prefix": settings.redis.prefix, "spec": layout.spec.name, "layout": layout.id, "model_version": version,
        "records": records, "rejected": sum(one.rejected for one in done), "customers": sum(customers.values()),
        "seconds": round(seconds, 3), "records_per_s": round(records / seconds, 1) if seconds else None,
        "partitions": [
            {
                "partition": one.partition, "from": one.start, "to": one.end, "records": one.records,
                "rejected": one.rejected, "customers": customers[one.partition],
                "records_per_s": round(one.records / one.seconds, 1) if one.seconds else None,
            }
            for one in done
        ],
    }  # fmt: skip


def _table(data: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    names = ("partition", "from", "to", "records", "rejected", "customers", "records_per_s")
    for name in names:
        table.add_column(name.replace("_per_", "/"), justify="right")
    for row in [*data["partitions"], {**data, "partition": "all", "from": None, "to": None}]:
        table.add_row(*(_cell(row[name]) for name in names))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:,.0f}"
