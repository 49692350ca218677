"""`ebbtide alert replay`: an alert decided again, from the row that it was decided on."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import click
import numpy as np
from rich.table import Table

from ebbtide.featurestore.record.layout import Layout, fold_of
from ebbtide.featurestore.spec import Spec, load_spec
from ebbtide.ops.asking.replayed import Replayed, compare, makes_again
from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import steps, table_and_json
from ebbtide.ops.errors import OpsError, SettingsError
from ebbtide.ops.tensorflow import load_tensorflow
from ebbtide.stream.kafka.reader import LogRecord, log_ranges, read_topic
from ebbtide.stream.outputs.alert import Alert
from ebbtide.stream.outputs.audit import AuditRecord, read_audit
from ebbtide.stream.outputs.versions import read_alert

Found = TypeVar("Found", Alert, AuditRecord)
ALERT_ID = re.compile(r"[0-9a-f]{32}")


class Case(NamedTuple):
    """What is replayed. history: the customer's records in the alert's partition, in order; None: not read. begin: the
    first offset of that partition's log."""

    alert: Alert
    audit: AuditRecord
    history: list[LogRecord] | None = None
    begin: int = 0


@click.group()
def command() -> None:
    """Replay an alert."""


@command.command()
@config_option
@click.argument("what", metavar="FILE|ALERT_ID")
@click.option(
    "--refold/--no-refold", default=True, show_default=True, help="Fold the customer's log again, too."
)
@json_option
def replay(config: Path | None, what: str, refold: bool, json_path: Path | None) -> int:
    """Score and explain an alert's row again, by the version that it names, and compare.

    FILE holds the alert's JSON and, in a second line, its audit record; what is missing, and of an ALERT_ID both, is
    looked for in the topics. On the same TensorFlow and processor the bits are the same; elsewhere p differs by 1e-5 at
    most. Where the input topic still holds the customer's history, the row is made of it again.

    Exit code 1: something is not as the alert says.
    """
    settings = load_settings(config)
    layout = Layout(load_spec(settings.spec))
    with steps() as progress:
        progress("finding the alert")
        case = asyncio.run(_case(settings, layout.spec, what, refold))
        if fold_of(case.audit.layout) != layout.fold_id:
            raise SettingsError(
                f"the alert was decided on a record of layout {case.audit.layout}, the spec makes {layout.id}",
                hint="name the spec of that time in the settings",
            )
        progress("loading the model")
        load_tensorflow()
        found = _replayed(settings, layout, case)
    table_and_json(_table(case, found), {"alert_id": case.alert.alert_id, **found.as_json()}, json_path)
    return 0 if found.holds else 1


def _replayed(settings: Settings, layout: Layout, case: Case) -> Replayed:
    from ebbtide.model.serving import runtime  # noqa: PLC0415 - brings TensorFlow, which is loaded quietly
    from ebbtide.model.serving.folder import home_of, version_of  # noqa: PLC0415 - as above
    from ebbtide.model.serving.scorer import Scorer, of_target  # noqa: PLC0415 - as above

    alert, audit = case.alert, case.audit
    runtime.configure()
    key = settings.model_key.get_secret_value() if settings.model_key else None
    of_one = version_of(settings.model.name) is not None and (settings.model / "manifest.json").is_file()
    home = settings.model.parent if of_one else home_of(settings.model)
    scorer = Scorer.load(home / str(alert.model_version), layout, key=key, whole=False)
    rows, as_of = audit.rows(layout), np.array([audit.as_of], np.int64)
    names = layout.spec.target_names
    target = names.index(alert.target) if alert.target in names else 0
    p, why = (
        of_target(scorer.score(rows, as_of), target)[0],
        scorer.explain(rows, as_of).of_target(target),
    )
    found = compare(alert, audit, layout, p, why, runtime.platform())
    if case.history is None:
        return found
    again = makes_again(case.history, alert, audit, layout, settings.parse_limits)
    # What was deleted from the log may be what is missing.
    return replace(found, refolded=True if again else False if case.begin == 0 else None)


async def _case(settings: Settings, spec: Spec, what: str, refold: bool) -> Case:
    alert, audit = (None, None) if ALERT_ID.fullmatch(what) else _of_file(Path(what))
    identity = what if alert is None else alert.alert_id
    if alert is None or audit is None:
        _check(settings, needs_audit=audit is None)
    if alert is None:
        alert = await _found(settings, settings.topics.alerts, identity, read_alert)
    if audit is None:
        assert settings.topics.audit is not None
        audit = await _found(settings, settings.topics.audit, identity, read_audit)
    if not refold or settings.local_kafka:
        return Case(alert, audit)
    at, key = alert.decision, spec.keys_of([alert.customer])[0]
    forgets = (key, alert.customer.encode())  # the first part of a composite customer, and the whole
    begin, _ = (await log_ranges(settings.kafka, at.topic))[at.partition]
    history: list[LogRecord] = []
    async with aclosing(read_topic(settings.kafka, at.topic)) as records:
        async for record in records:
            if record.partition != at.partition:
                continue
            if record.value is not None:
                if record.key == key:
                    history.append(record)
            elif record.key in forgets and (at.offset is None or record.offset < at.offset):
                history.clear()  # they were forgotten, and came back
    return Case(alert, audit, history, begin)


async def _found(settings: Settings, topic: str, identity: str, read: Callable[[bytes], Found]) -> Found:
    """The record of a topic that is of this alert. Raises OpsError where there is none, or a tombstone behind it."""
    found: Found | None = None
    records: AsyncGenerator[LogRecord, None] = read_topic(settings.kafka, topic)
    async with aclosing(records):
        async for record in records:
            if record.value is None:
                if found is not None and record.key == found.customer.encode():
                    found = None
            elif identity.encode() in record.value:
                with suppress(ValueError):
                    each = read(record.value)
                    found = each if each.alert_id == identity else found
    if found is None:
        raise OpsError(
            f"{topic!r} holds nothing of alert {identity}",
            hint="it may be older than the topic's retention, or its customer was forgotten",
        )
    return found


def _of_file(path: Path) -> tuple[Alert, AuditRecord | None]:
    if not path.is_file():
        raise OpsError(
            f"{str(path)!r} is neither a file nor the id of an alert",
            hint="an id has 32 digits of 0 to 9 and a to f",
        )
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    try:
        return read_alert(lines[0]), read_audit(lines[1]) if len(lines) > 1 else None
    except (ValueError, IndexError):
        raise OpsError(
            f"{path} does not hold an alert",
            hint="one line of JSON, and its audit record in the next, if you have it",
        ) from None


def _check(settings: Settings, *, needs_audit: bool) -> None:
    if settings.local_kafka:
        raise SettingsError("there is no Kafka to ask: none is configured", hint="set EBBTIDE_KAFKA_URL")
    if needs_audit and settings.topics.audit is None:
        raise SettingsError(
            "rows of alerts are not kept: no audit topic is configured", hint="set topics.audit"
        )


def _table(case: Case, found: Replayed) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    alert = case.alert
    again = {True: "the log makes it again", False: "the log does not make it again", None: "not refolded"}
    rows = {
        "alert": f"{alert.alert_id}: {alert.state} by {alert.model} version {alert.model_version}",
        "row": ("that of the alert" if found.same_row else "not that of the alert")
        + f"; {again[found.refolded]}",
        "score": f"{found.score}: p {found.p!r}, then {found.alerted_p!r}",
        "reasons": found.reasons,
        "platform": "the same: bits are compared"
        if found.same_platform
        else f"another ({found.platform}): p and contributions may differ by 1e-5",
        "verdict": "as the alert says" if found.holds else "NOT as the alert says",
    }
    for name, words in rows.items():
        table.add_row(name, words)
    return table
