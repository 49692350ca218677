"""`ebbtide dlq`: the dead letters, for whoever has to find out why and send them again."""

import asyncio
import hashlib
import secrets
from collections import deque
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ebbtide.featurestore.events.contract import TIME_MS_MAX
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, load_spec
from ebbtide.featurestore.times.timestamps import format_time
from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.errors import SettingsError
from ebbtide.ops.worker.connect import check_state, open_store
from ebbtide.stream.dlq.replay import Folded, Letter, Replayed, letters, replay
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import log_ranges
from ebbtide.stream.outputs.dead_letter import REASONS

reason_option = click.option(
    "--reason", "reasons", type=click.Choice(REASONS), multiple=True, metavar="NAME",
    help="Only of this reason, as the list names it; repeatable.",
)  # fmt: skip


@click.group()
def command() -> None:
    """List the dead letters, send them back."""


@command.command("list")
@config_option
@reason_option
@click.option("--customer", metavar="ID", help="Only of this customer: records under that key.")
@click.option(
    "--limit", type=click.IntRange(0), default=50, show_default=True, help="Show so many, the latest."
)
@json_option
def list_letters(
    config: Path | None,
    reasons: tuple[str, ...],
    customer: str | None,
    limit: int,
    json_path: Path | None,
) -> None:
    """What lies in the dead-letter topic: why, from where, since when.

    No customer's id is shown. `key` is a pseudonym for this list alone: who has the same one is the same customer, and
    the next list knows them by another, so that nobody can try out ids on it. To find a customer, name them.
    """
    settings = _connected(config)
    with steps() as progress:
        progress(f"reading {settings.topics.dead_letters}")
        counts, latest = asyncio.run(_read(settings, reasons, customer, limit))
    table = Table(box=None, pad_edge=False)
    for name in ("reason", "position", "key", "bytes", "when", "detail"):
        table.add_column(name, no_wrap=name != "detail", justify="right" if name == "bytes" else "left")
    for row in latest:
        position = f"{row['topic']}/{row['partition']}@{row['offset']}"
        when = row["when"] or "-"
        table.add_row(row["reason"], position, row["key_hash"] or "-", str(row["bytes"]), when, row["detail"])
    total = sum(counts.values())
    table_and_json(
        table if latest else None, {"letters": total, "reasons": counts, "latest": latest}, json_path
    )
    said = ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts.items(), key=lambda item: -item[1]))
    console().print(f"{total:,} dead letters" + (f": {said}" if said else ""), soft_wrap=True)


@command.command("replay")
@config_option
@reason_option
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@json_option
def replay_letters(
    config: Path | None, reasons: tuple[str, ...], dry_run: bool, json_path: Path | None
) -> None:
    """Send dead letters back to their topic as they came, each once.

    What was sent is remembered by reason in Kafka, as the consumer group GROUP-dlq-replay, so that a second replay
    sends only what came since. Passed over are dead letters of customers who were forgotten since, also where the
    workers have not come to the tombstone yet, and those whose events are folded already: `unscored`, and what the
    state, made again from the log under another spec, took where the one before had not.
    """
    settings = _connected(config)
    with steps() as progress:
        progress(f"replaying {settings.topics.dead_letters}")
        result = asyncio.run(_replay(settings, reasons, dry_run))
    sent = sum(result.sent.values())
    data = {
        "sent": sent, "dry_run": dry_run, "reasons": dict(result.sent), "replayed_before": result.done_before,
        "forgotten": result.forgotten, "of_another_topic": result.of_another_topic,
        "empty": result.empty, "folded_already": result.folded_already,
        "folded_since": result.folded_since, "gone": result.gone,
        "too_large": result.too_large,
    }  # fmt: skip
    table_and_json(None, data, json_path)
    verb = "would be sent" if dry_run else "sent"
    said = ", ".join(f"{reason} {n:,}" for reason, n in result.sent.most_common())
    passed = f"{result.done_before:,} replayed before, {result.forgotten:,} of customers forgotten since"
    passed += f", {result.empty:,} with neither key nor value" if result.empty else ""
    passed += f", {result.of_another_topic:,} of another topic" if result.of_another_topic else ""
    passed += (
        f", {result.folded_already:,} unscored, whose events are folded" if result.folded_already else ""
    )
    passed += f", {result.folded_since:,} that a state made since has folded" if result.folded_since else ""
    passed += f", {result.gone:,} whose record is no longer in the input" if result.gone else ""
    passed += f", {result.too_large:,} that are too large to be sent" if result.too_large else ""
    console().print(
        f"{sent:,} dead letters {verb} to {settings.kafka.topic}"
        + (f" ({said})" if said else "")
        + f"; passed over: {passed}",
        soft_wrap=True,
    )


def _connected(config: Path | None) -> Settings:
    settings = load_settings(config)
    if settings.local_kafka:
        raise SettingsError(
            "there is no Kafka to read from: none is configured, and one started now would be empty",
            hint="set EBBTIDE_KAFKA_URL",
        )
    return settings


async def _read(
    settings: Settings, reasons: tuple[str, ...], customer: str | None, limit: int
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    counts: dict[str, int] = {}
    # Of a composite customer, all dead letters that may be theirs: their key may be the first part.
    wanted = None if customer is None else load_spec(settings.spec).keys_of([customer])[0]
    secret = secrets.token_bytes(16)
    latest: deque[dict[str, Any]] = deque(maxlen=limit)
    async for letter in letters(settings.kafka, settings.topics.dead_letters, reasons):
        if wanted is not None and letter.record.key != wanted:
            continue
        counts[letter.reason] = counts.get(letter.reason, 0) + 1
        latest.append(_row(letter, secret))
    return counts, list(latest)


def _row(letter: Letter, secret: bytes) -> dict[str, Any]:
    record = letter.record
    key_hash = (
        None if record.key is None else hashlib.blake2b(record.key, key=secret, digest_size=4).hexdigest()
    )
    dated = 0 < letter.timestamp <= TIME_MS_MAX  # a producer may state any time at all
    when = format_time(letter.timestamp) if dated else None
    return {
        "reason": letter.reason, "topic": letter.source.topic, "partition": letter.source.partition,
        "offset": letter.source.offset, "key_hash": key_hash, "when": when, "detail": letter.detail,
        "bytes": letter.omitted.size_bytes if letter.omitted else len(record.value or b""),
    }  # fmt: skip


async def _replay(settings: Settings, reasons: tuple[str, ...], dry_run: bool) -> Replayed:
    spec = load_spec(settings.spec)
    folded = await _folded(settings, spec)
    async with KafkaSink(settings.kafka) as sink:
        return await replay(
            settings.kafka, settings.topics.dead_letters, sink, folded, reasons=reasons,
            composite=spec.customer is not None, dry_run=dry_run,
        )  # fmt: skip


async def _folded(settings: Settings, spec: Spec) -> Folded | None:
    """What the state in service has folded that lies in dead letters; None without a Redis to ask. A state that is not
    of this spec is refused: what it has folded cannot be known."""
    if settings.local_redis:
        return None
    layout, begin_end = Layout(spec), await log_ranges(settings.kafka, settings.kafka.topic)
    async with open_store(settings, layout, len(begin_end)) as store:
        await check_state(store, layout)
        found = await asyncio.gather(*store.checkpoint_each(range(store.partitions)))
    silent = {n: each.silent for n, each in enumerate(found) if each is not None and each.silent is not None}
    return Folded(silent, Parser(spec, settings.parse_limits))
