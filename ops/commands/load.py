"""`ebbtide load`: seeded load at a rate, and honest latencies."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.table import Table

from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import Steps, steps, table_and_json
from ebbtide.ops.load.latency import Latency, latency
from ebbtide.ops.load.run import LoadRun, Outcome
from ebbtide.ops.load.sessions import Sessions, sessions
from ebbtide.ops.stack.needed import stack
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.topics import ensure_topics

LATE_S = 0.1
"""A generator that lags more than this measures itself."""


@click.command()
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), default=500.0, show_default=True, help="Events/s."
)
@click.option("--seconds", type=click.FloatRange(1), default=30.0, show_default=True)
@click.option("--customers", type=click.IntRange(1), default=10_000, show_default=True)
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="The same seed, the same load."
)
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="DIR", help="For a worker that is started here."
)
@config_option
@json_option
def command(
    rate: float,
    seconds: float,
    customers: int,
    seed: int,
    model: Path | None,
    config: Path | None,
    json_path: Path | None,
) -> None:
    """Send sessions of a shop's customers at a rate, and tell how late alerts and scores come.

    Latency counts from when an event was to be sent, whatever held it up. Events go to the configured topic, with
    customers of their own, who get a short past first: never into a topic of real customers. Scores are timed where
    `topics.scores` is set. Without a URL for Kafka or Redis, servers and a worker are started here.
    """
    settings = load_settings(config, options={"model": model})
    schedule = sessions(seed, rate, seconds, customers)
    with steps() as say, TemporaryDirectory(prefix="ebbtide-load-") as folder, ExitStack() as running:
        ready = running.enter_context(stack(settings, say))
        if settings.local_kafka:
            topics = ready.topics.model_copy(update={"scores": ready.topics.scores or "scores"})
            ready = ready.model_copy(update={"topics": topics, "alerts_from": "start"})
        asyncio.run(ensure_topics(ready.kafka, topic_specs(ready)))
        if settings.local_kafka or settings.local_redis:
            say("starting a worker")
            running.enter_context(WorkerProcess(ready, Path(folder))).wait_ready()
        outcome = asyncio.run(_measured(ready, schedule, f"load{seed}", say))
    figures = as_json(outcome, rate)
    table_and_json(table(figures), figures, json_path)


async def _measured(settings: Settings, schedule: Sessions, name: str, say: Steps) -> Outcome:
    total = len(schedule.at_s)
    say("sending")
    return await LoadRun(settings, schedule, name, SystemClock()).run(
        lambda sent, alerts, last_s: say.advance(
            sent, total, f"{alerts:,} alerts, the last after {last_s:.3f} s"
        )
    )


def as_json(outcome: Outcome, rate: float) -> dict[str, Any]:
    """Stable names; latencies in ms."""
    return {
        "rate": rate,
        "events": outcome.sent,
        "customers": outcome.customers,
        "events_per_s": outcome.sent / outcome.seconds,
        "seconds": outcome.seconds,
        "alerts": outcome.alerts,
        "alerts_repeated": outcome.repeated,
        "alert_latency": outcome.alert_latency()._asdict(),
        "score_latency": outcome.score_latency()._asdict(),
        "sent_late": latency(outcome.late_s)._asdict(),
    }


def table(figures: dict[str, Any]) -> Table:
    """A row for what is measured, and for the generator itself."""
    shown = Table("", *(name for name in Latency._fields), title=f"{figures['events_per_s']:,.0f} events/s")
    rows = {"event to alert": "alert_latency", "event to score": "score_latency", "sent late": "sent_late"}
    for words, key in rows.items():
        if figures[key]["n"]:
            shown.add_row(
                words,
                *(f"{value:,.1f}" if name != "n" else f"{value:,}" for name, value in figures[key].items()),
            )
    if not figures["alert_latency"]["n"] and not figures["score_latency"]["n"]:
        shown.caption = (
            f"{figures['alerts']:,} alerts, none at an event that was sent here, and no score was read: there is no"
            " latency to tell. Set topics.scores for worker and load, or send for longer."
        )
    if (figures["sent_late"]["p99_ms"] or 0) > LATE_S * 1000:
        shown.caption = (
            "The load left late: this machine or Kafka cannot send at that rate. The latencies count it."
        )
    return shown
