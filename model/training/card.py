"""The model card: what a model is for, what it learned from, how good it is, and what must not be believed of it.

Markdown in the version's folder beside its plots, made of the report's own figures: it computes nothing.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import format_time
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.slices import HELD_OUT_PERCENT
from ebbtide.model.judging.evaluate import MODEL, Figure, Moment
from ebbtide.model.training.fit import Fit
from ebbtide.model.training.plots import draw_plots
from ebbtide.model.training.report import TrainReport

CARD = "model_card.md"
METRIC_WORDS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "log_loss": "log loss",
    "ece": "ECE",
    "lift_at_10": "lift at 10 %",
}


def write_card(
    folder: Path,
    spec: Spec,
    config: TrainConfig,
    report: TrainReport,
    found: Fit,
    test: Examples,
    scores: Mapping[str, NDArray[np.float64]],
    created: datetime,
) -> None:
    """Write the card and its plots. `scores`: float64[n] by name on the rows of `test`."""
    draw_plots(folder, test, scores, found)
    (folder / CARD).write_text(card_text(spec, config, report, created), encoding="utf-8")


def card_text(spec: Spec, config: TrainConfig, report: TrainReport, created: datetime) -> str:
    """The card as Markdown."""
    evaluation, chosen, best = report.evaluation, report.thresholds, report.evaluation.best_baseline
    horizon = f"{report.horizon_ms / DAY_MS:g} days"
    activity = ", ".join(kind.name for kind in spec.kinds if kind.role == "activity")
    return f"""# {spec.name}: churn within {horizon}

Made {created:%Y-%m-%d %H:%M} UTC from {report.events:,} events of {report.customers:,} customers; examples
`{report.data_hash}`, seed {config.seed}.{_beyond(report)}

## What it answers

The probability that a customer shows {spec.churn_words} in the {horizon} after a decision point, given that no
leave is stated in that time ({report.left:,} examples ended in a stated leave and took no part).
Activity is: {activity}.
Who is scored: {_eligibility(spec)}.

## How good it is

On snapshots of the test slice: {evaluation.rows:,} rows of {evaluation.customers:,} customers,
{evaluation.base_rate:.1%} of which churned. In brackets, 95 % intervals by bootstrap over customers.

{_metric_table(report)}

Difference in AUROC, model minus {best} (the best baseline):
{_interval(evaluation.differences["auroc"][best], "+.4f")}. A perfectly calibrated model with these
probabilities would have an ECE below {evaluation.ece_bound[MODEL]:.4f} in 95 % of such samples.

### By moment, decision points of the test slice

{_moment_table(report)}

![reliability](reliability.png) ![ROC](roc.png)
![training](training.png) ![silence](silence.png)

## When it alerts

`enter` {chosen.enter:.4f}, `exit` {chosen.exit:.4f}: chosen so that {chosen.alert_rate:.0%} of the customers
who come up for a decision within one horizon reach `enter`, measured on the last horizon before labels were
closed (it came to {chosen.alerted:.1%} of {chosen.customer_horizons:,}).
{_tested(report)}

## What it learned from

{_slice_table(report)}

{_scheme(report)}

Examples are decision points (events and the silences after them) and snapshots, half each, weighted so that
a customer with many rows does not drown the others. {_lateness(spec)}

## What not to believe

- The figures speak for customers and times like those of the log. Alerts that are acted upon change the
  outcome they predict; judge the model in service on customers who got none.
- Contributions explain the model, not the customer: they do not say what would keep one.
- Rows silent for longer than the log is long, or older than any customer in it, lie outside of what was
  seen.
"""


def _metric_table(report: TrainReport) -> str:
    names = list(report.evaluation.values["auroc"])
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for metric, words in METRIC_WORDS.items():
        cells = []
        for name in names:
            text = f"{report.evaluation.values[metric][name]:.4f}"
            if metric in report.evaluation.intervals:
                text += f" ({_interval(report.evaluation.intervals[metric][name], '.3f')})"
            cells.append(text)
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _moment_table(report: TrainReport) -> str:
    lines = ["| moment | rows | churned | predicted | AUROC | best baseline |", "|---|---|---|---|---|---|"]
    for row in report.moments:
        shown = " | ".join("" if value is None else f"{value:.3f}" for value in _cells(row))
        lines.append(f"| {row.moment} | {row.rows:,} | {shown} |")
    return "\n".join(lines)


def _cells(row: Moment) -> list[Figure]:
    auroc = row.auroc or {}
    others = [value for name, value in auroc.items() if name != MODEL and value is not None]
    return [row.base_rate, row.predicted, auroc.get(MODEL), max(others, default=None)]


def _slice_table(report: TrainReport) -> str:
    lines = ["| slice | from | to | rows |", "|---|---|---|---|"]
    for name, span in report.spans.items():
        start, end = span or ("", f"{HELD_OUT_PERCENT} % of the customers of the train slice")
        lines.append(f"| {name} | {start} | {end} | {report.examples[name]:,} |")
    return "\n".join(lines) + f"\n\nLabels were closed at {format_time(report.labels_until_ms)}."


def _scheme(report: TrainReport) -> str:
    if not report.refit:
        return "The network that was judged is the one that is published."
    if report.share > 0:
        found = f"its best epoch was number {report.epochs}, with a share of {report.share:.1f} beside the linear "
        found += "model that it begins as."
    else:
        found = "nothing improved on the linear model that it begins as, so the sequence has no say in it."
    ours, others = 100 - HELD_OUT_PERCENT, HELD_OUT_PERCENT
    return (
        f"**What was judged and what is published.** The figures above are of a network that saw the train slice "
        f"alone; {found} The published one was trained the same way, with the same epochs and share, on all "
        f"labelled rows of {ours} % of the customers ({report.examples['refit']:,} rows), so that "
        f"it ends where the labels end; its calibrator comes from the other {others} % "
        f"({report.examples['held_out']:,} rows). The figures speak for the recipe on a later time."
    )


def _lateness(spec: Spec) -> str:
    if spec.mapping.arrival is not None:
        return (
            f"Events were replayed in the order of `{spec.mapping.arrival}`, late ones as late as they came."
        )
    return (
        "The log says not when events arrived: they were replayed in the order of their own time, so that lateness is "
        "not represented."
    )


def _tested(report: TrainReport) -> str:
    """What the evaluated network's own threshold, chosen the same way, did in the test slice."""
    tested = report.tested
    if tested is None or tested.alerted is None:
        return "The test slice, or the horizon before it, had no decision point to try one on."
    right = "" if tested.precision is None else f", {tested.precision:.1%} of them rightly"
    alerted = f"{tested.alerted:.1%} in the test slice{right}"
    return f"The evaluated network's own, chosen on the horizon before the test slice, alerted {alerted}."


def _beyond(report: TrainReport) -> str:
    if not report.events_beyond:
        return ""
    return f" Left out: {report.events_beyond:,} of the log's events, dated far ahead of all others."


def _eligibility(spec: Spec) -> str:
    rule = spec.eligibility
    words = [f"at least {rule.min_events} activities"]
    if rule.min_tenure_ms:
        words.append(f"known for {rule.min_tenure_ms / DAY_MS:g} days")
    silent = rule.max_silence_ms or spec.memory_ms
    return ", ".join([*words, f"silent for at most {silent / DAY_MS:g} days"])


def _interval(bounds: tuple[float, float], form: str) -> str:
    return f"{bounds[0]:{form}} to {bounds[1]:{form}}"
