"""`ebbtide backfill`: history straight into the store, so that a worker need not start from nothing."""

import asyncio
from pathlib import Path

import click

from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.commands.options import DATE, config_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import Steps, console, steps
from ebbtide.ops.stack.needed import stack
from ebbtide.ops.state.backfill import Backfilled, backfill
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.stream.kafka.reader import log_ranges
from ebbtide.stream.kafka.topics import ensure_topics


@click.command()
@config_option
@click.option("--events", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The history.")
@click.option("--spec", type=click.Path(path_type=Path), metavar="FILE", help="Feature spec in YAML.")
@click.option("--until", "until_ms", type=DATE, help="Leave out what arrived at or after this date.")
@click.option("--reset", is_flag=True, help="Delete the state that the store holds of the topic first.")
def command(config: Path | None, events: Path, spec: Path | None, until_ms: int | None, reset: bool) -> None:
    """Fold a file of events and store every customer's record; a worker goes on from the input topic's end.

    Nobody is alerted about the past. Stop the workers first: a store that moves is refused.
    """
    settings = load_settings(config, options={"spec": spec})
    with steps() as progress, stack(settings, progress) as complete:
        done = asyncio.run(_run(complete, events, until_ms, reset, progress))
        console().print(f"{done.events:,} events folded, {done.customers:,} customers stored")
        if settings.local_redis:
            console().print(
                "the store was a local one and ends with this command: set EBBTIDE_REDIS_URL to keep it"
            )


async def _run(
    settings: Settings, path: Path, until_ms: int | None, reset: bool, progress: Steps
) -> Backfilled:
    layout = Layout(load_spec(settings.spec))
    progress(f"reading {path.name}")
    log = read_log(path, layout.spec, progress=lambda share: progress.advance(share, 1.0))
    counts = await ensure_topics(settings.kafka, topic_specs(settings))
    ends = {p: end for p, (_, end) in (await log_ranges(settings.kafka, settings.kafka.topic)).items()}
    before = until_ms if until_ms is not None else int(log.events.time.max(initial=0)) + 1
    progress("storing")
    async with open_store(settings, layout, counts[settings.kafka.topic]) as store:
        return await backfill(log.events, layout, store, ends, before, reset=reset, progress=progress.advance)
