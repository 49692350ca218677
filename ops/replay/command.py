"""What `ebbtide replay` does, step by step, and the table it ends in."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ebbtide.featurestore.check.history import read_history
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import epoch_ms
from ebbtide.model.fitting.baselines import BASELINES
from ebbtide.model.judging.evaluate import MODEL
from ebbtide.model.serving.runtime import configure
from ebbtide.model.serving.scorer import Scorer
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import Steps
from ebbtide.ops.replay.outcomes import Alerting
from ebbtide.ops.replay.report import (
    PRIMARY,
    Agreement,
    Judged,
    alerting,
    as_json,
    compare,
    fit_baselines,
    history_of,
    judge,
)
from ebbtide.ops.replay.run import Replayed, replay

BOOTSTRAP = 400


def run(
    settings: Settings,
    spec: Spec,
    events: Path,
    from_ms: int,
    snapshots: list[int],
    folder: Path,
    progress: Steps,
) -> tuple[Group, dict[str, Any]]:
    """Replay, judge, and return the table and the same figures as plain data."""
    progress(f"reading {events.name}")
    log = read_history(events, spec, progress=lambda share: progress.advance(share, 1.0))
    progress("loading the model")
    configure()
    layout = Layout(spec)
    scorer = Scorer.load(settings.model, layout)
    progress("replaying")
    replayed = asyncio.run(
        replay(
            settings, spec, log, from_ms=from_ms, snapshots=snapshots, run=f"replay-{uuid4().hex[:8]}", folder=folder,
            progress=progress.advance,
        )
    )  # fmt: skip
    progress("fitting the baselines")
    history, until = history_of(layout, log), scorer.manifest.labels_until
    until_ms = epoch_ms(until) if until else from_ms
    baselines = fit_baselines(history, until_ms, scorer.manifest.training)
    progress("judging")
    judged = [judge(each, history, scorer, baselines, BOOTSTRAP) for each in replayed.snapshots]
    agreement = compare(replayed, history, scorer)
    alerts = alerting(replayed, history)
    others = {name: alerting(replayed, history, t) for t, name in list(enumerate(spec.target_names))[1:]}
    data = as_json(replayed, log, judged, agreement, alerts, others)
    return _tables(replayed, judged, agreement, alerts, data, spec), data


def _tables(
    replayed: Replayed,
    judged: list[Judged],
    agreement: Agreement,
    alerts: Alerting,
    data: dict[str, Any],
    spec: Spec,
) -> Group:
    snapshots = Table(
        title=f"AUROC of live snapshots, churn = {spec.churn_words} within {spec.horizon_ms / DAY_MS:.0f} days"
    )
    for name in (
        "as of",
        "customers",
        "base rate",
        "model",
        "95 %",
        "recency",
        "logistic",
        "trees",
        "lift at 10 %",
    ):
        snapshots.add_column(name, justify="right")
    for each in judged:
        found = each.evaluation
        auroc, (low, high) = found.values["auroc"], found.intervals["auroc"][MODEL]
        snapshots.add_row(
            str(np.datetime64(each.as_of, "ms").astype("datetime64[D]")),
            f"{each.customers:,}",
            f"{found.base_rate:.1%}",
            f"{auroc[MODEL]:.3f}",
            f"{low:.3f}–{high:.3f}",
            *(f"{auroc[name]:.3f}" for name in BASELINES),
            f"{found.values['lift_at_10'][MODEL]:.2f}",
        )
    totals = Table(show_header=False, box=None)
    totals.add_column(style="bold")
    totals.add_column()
    rows = {
        "events": f"{data['events']:,} streamed after {replayed.start:,} folded; {data['events_per_s']:,.0f} events/s",
        "dead letters": f"{replayed.dead_letters:,}",
        "alerts": f"{alerts.opened:,} opened; outcome known of {alerts.known:,}, right {alerts.right:,}"
        + (
            f" ({alerts.precision:.1%}), half of them {alerts.lead_days_p50:.1f} days ahead or more"
            if alerts.right
            else ""
        ),
        "streamed = offline": f"{agreement.points:,} decision points, largest difference {agreement.difference_max:g}; "
        f"{agreement.missing} missing, {agreement.extra} extra",
        "worker": f"peak {replayed.peak_rss_bytes / 2**20:,.0f} MiB",
    }
    for name, each in data["targets"].items():
        right = "" if each["alert_precision"] is None else f", {each['alert_precision']:.1%} of them right"
        ranked = ", ".join(
            f"{j.further[name].values['auroc'][MODEL]:.3f} ({j.further[name].values['auroc'][PRIMARY]:.3f})"
            for j in judged
            if name in j.further
        )
        rows[f"target {name}"] = (
            f"{each['alerts']:,} alerts{right}; AUROC by date {ranked}, in brackets by the primary head"
        )
    for name, words in rows.items():
        totals.add_row(name, words)
    note = Text(
        f"{alerts.by_silence_alone:,} of the alerts are about customers of whom no event followed: only silence, taken"
        " by a timer, could bring them.",
        style="dim",
    )
    return Group(snapshots, totals, note)
