"""`ebbtide backfill`: history straight into the store, so that a worker need not start from nothing."""

import asyncio
from pathlib import Path

import click

from ebbtide.featurestore.check.history import read_history
from ebbtide.featurestore.parts.engine import Engine
from ebbtide.featurestore.parts.processes import HERE
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.times.timestamps import format_time
from ebbtide.ops.commands.options import DATE, config_option, engine_of, jobs_option, spark_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import Steps, console, steps
from ebbtide.ops.errors import OpsError
from ebbtide.ops.stack.needed import stack
from ebbtide.ops.state.backfill import Backfilled, backfill
from ebbtide.ops.state.junction import FilePart, Gap, junctions_of, part_of
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.stream.kafka.reader import log_at
from ebbtide.stream.kafka.topics import ensure_topics


@click.command()
@config_option
@click.option("--events", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The history.")
@click.option("--spec", type=click.Path(path_type=Path), metavar="FILE", help="Feature spec in YAML.")
@click.option("--until", "until_ms", type=DATE, help="Leave out what arrived at or after this date.")
@click.option("--reset", is_flag=True, help="Delete the state that the store holds of the topic first.")
@click.option(
    "--accept-gap",
    is_flag=True,
    help="Go on although records between the file's end and the topic's begin are gone.",
)
@jobs_option
@spark_option
def command(
    config: Path | None, events: Path, spec: Path | None, until_ms: int | None, reset: bool, accept_gap: bool,
    jobs: int, spark: str | None,
) -> None:  # fmt: skip
    """Fold a file of events and store every customer's record; a worker goes on in the topic where the file ends.

    That is by arrival: the topic's records from the file's end on are left to the worker. Nobody is alerted about the
    past. Stop the workers first: a store that moves is refused.
    """
    engine, settings = engine_of(jobs, spark), load_settings(config, options={"spec": spec})
    with steps() as progress, stack(settings, progress) as complete:
        part, gaps, done = asyncio.run(run(complete, events, until_ms, reset, accept_gap, progress, engine))
        say = console().print
        say(f"{done.events:,} events folded, {done.customers:,} customers stored")
        say(f"the file ends at {format_time(part.until_ms)}, by arrival: the topic goes on from there")
        if part.outliers:
            say(f"{part.outliers:,} events were left out: they lie beyond all that the file knows")
        for gap in gaps:
            say(f"a gap that nobody can fill: {gap.words()}", soft_wrap=True)
        if settings.local_redis:
            say("the store was a local one and ends with this command: set EBBTIDE_REDIS_URL to keep it")


async def run(
    settings: Settings,
    path: Path,
    until_ms: int | None,
    reset: bool,
    accept_gap: bool,
    progress: Steps,
    engine: Engine = HERE,
) -> tuple[FilePart, list[Gap], Backfilled]:
    layout = Layout(load_spec(settings.spec))
    progress(f"reading {path.name}")
    log = read_history(path, layout.spec, progress=lambda share: progress.advance(share, 1.0), engine=engine)
    part = part_of(log, until_ms)
    counts = await ensure_topics(settings.kafka, topic_specs(settings))
    found = await log_at(settings.kafka, settings.kafka.topic, part.until_ms)
    junctions, gaps = junctions_of(found, part.until_ms)
    if gaps and not accept_gap:
        raise OpsError(
            "what arrived between the file's end and the topic's first record is in neither: "
            + "; ".join(gap.words() for gap in gaps),
            hint="export a later file, or say --accept-gap to go on without it",
        )
    progress("storing")
    async with open_store(settings, layout, counts[settings.kafka.topic]) as store:
        done = await backfill(
            part.events,
            layout,
            store,
            junctions,
            part.known_ms,
            reset=reset,
            engine=engine,
            progress=progress.advance,
        )
    return part, gaps, done
