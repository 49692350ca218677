"""The model card: what a model is for, what it learned from, how good it is, and what must not be believed of it.

Markdown in the version's folder beside its plots, made of the report's own figures: it computes nothing.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS, format_duration
from ebbtide.featurestore.times.timestamps import format_date, format_time
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.slices import HELD_OUT_PERCENT
from ebbtide.model.fitting.fit import Fit
from ebbtide.model.graph.network import multiplications
from ebbtide.model.graph.sizes import without_sequence
from ebbtide.model.judging.evaluate import MODEL, Figure
from ebbtide.model.judging.horizons import FIRST_HEAD
from ebbtide.model.judging.parts import Part
from ebbtide.model.judging.thresholds import Thresholds
from ebbtide.model.training.plots import draw_horizons, draw_plots, draw_training
from ebbtide.model.training.report import TrainReport

CARD = "model_card.md"
TARGETS = "targets"
"""Where in a version's folder the cards of further targets lie, each in a folder of its name."""
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
    draw_plots(folder, test, scores)
    if report.survival is not None:
        draw_horizons(folder, report.survival)
    draw_training(folder, found, report.recipe)
    (folder / CARD).write_text(card_text(spec, config, report, created), encoding="utf-8")


def card_text(spec: Spec, config: TrainConfig, report: TrainReport, created: datetime) -> str:
    """The card as Markdown."""
    evaluation, chosen, best = report.evaluation, report.thresholds, report.evaluation.best_baseline
    horizon = f"{report.horizon_ms / DAY_MS:g} days"
    activity = ", ".join(kind.name for kind in spec.kinds if kind.role == "activity")
    return f"""# {_title(spec, report)}: churn within {horizon}

Made {created:%Y-%m-%d %H:%M} UTC from {report.events:,} events of {report.customers:,} customers; examples
`{report.data_hash}`, seed {config.seed}.{_beyond(report)}

## What it answers

The probability that a customer shows {report.churn} in the {horizon} after a decision point, given that no
leave is stated in that time ({report.left:,} examples ended in a stated leave and took no part).
Activity is: {activity}.
Who is scored: {_eligibility(spec)}.{_other_targets(report)}

{_refusals(report)}{_cautions(report)}## How good it is

### By moment: where alerts are decided

Decision points of the test slice, {_span(report)}. A bias is within its bound where a model without bias would show as
much by chance, in all moments at once (95 %, bootstrap over customers); the last column is the bias that is left when
one shift for all moments, that of the base rate, is removed.

{_moment_table(report)}

Log loss, and in brackets AUROC:

{_moment_metrics(report)}

### On snapshots

{evaluation.rows:,} rows of {evaluation.customers:,} customers as of stated dates, {evaluation.base_rate:.1%} of which
churned. In brackets, 95 % intervals by bootstrap over customers.

{_metric_table(report)}

Difference in AUROC, model minus {best} (the best baseline):
{_interval(evaluation.differences["auroc"][best], "+.4f")}; in log loss
{_interval(evaluation.differences["log_loss"][best], "+.4f")}. A perfectly calibrated model with these
probabilities would have an ECE below {evaluation.ece_bound[MODEL]:.4f} in 95 % of such samples.

{_group_table(report)}

{_horizons(report)}
![reliability](reliability.png) ![ROC](roc.png)
![training](training.png) ![silence](silence.png)

## When it alerts

`enter` {chosen.enter:.4f}, `exit` {chosen.exit:.4f}: chosen so that {chosen.alert_rate:.0%} of the customers
who come up for a decision within one horizon reach `enter`, measured on the last horizon before labels were
closed (it came to {chosen.alerted:.1%} of {chosen.customer_horizons:,}).{_tie(chosen)}
{_tested(report)}

## What it learned from

{_slice_table(report)}

{_scheme(report)}

{_sequence(report, spec, config)}

Examples are decision points (events and the silences after them) and snapshots, half each. The k-th row of a
customer weighs 1/sqrt(k), so that one with many rows does not drown the others. {_lateness(spec)}

## What not to believe

- The figures speak for customers and times like those of the log. Alerts that are acted upon change the
  outcome they predict; judge the model in service on customers who got none.
- Contributions explain the model, not the customer: they do not say what would keep one.
- Rows silent for longer than the log is long, or older than any customer in it, lie outside of what was
  seen.
"""


def _title(spec: Spec, report: TrainReport) -> str:
    return spec.name if len(spec.target_names) == 1 else f"{spec.name}, {report.target.replace('_', ' ')}"


def _other_targets(report: TrainReport) -> str:
    if not report.further:
        return ""
    links = [f"[{each.churn}]({TARGETS}/{each.target}/{CARD})" for each in report.further]
    return f"\n\nThe model has a head for each target of its spec; the others: {', '.join(links)}."


def _horizons(report: TrainReport) -> str:
    """Whether the time to the next event is to be believed."""
    found = report.survival
    if found is None:
        return ""
    lines = [
        "### By horizon: that nothing has come yet",
        "",
        (
            "S(h) is the chance that none of the target's events has come within h, on snapshots whose h is over. In "
            "brackets, what the probability of one horizon alone says of all."
        ),
        "",
        "| horizon | rows | stayed away | AUROC | ECE | ECE of a perfect model |",
        "|---" * 6 + "|",
    ]
    for at in found.horizons:
        cells = [
            f"{_figure(named.get(MODEL), form)} ({_figure(named.get(FIRST_HEAD), form)})"
            for named, form in ((at.values.get("auroc", {}), ".3f"), (at.values.get("ece", {}), ".4f"))
        ]
        shown = [_figure(at.stayed_away, ".1%"), *cells, _figure(at.ece_bound, ".4f")]
        lines.append(f"| {format_duration(at.horizon_ms)} | {at.rows:,} | {' | '.join(shown)} |")
    order = found.concordance
    lines += [
        "",
        f"Of two customers, the one expected later came later in {_figure(order[MODEL], '.1%')} of pairs (by p alone "
        f"{_figure(order[FIRST_HEAD], '.1%')}). "
        + " ".join(
            f"{_figure(share, '.1%')} had come by their {name.upper()}."
            for name, share in found.came_by.items()
            if share is not None
        ),
        "",
        "![by horizon](horizons.png)",
        "",
    ]
    return "\n".join(lines)


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
    lines = [
        "| moment | rows | customers | churned | predicted | ratio | bias | within | bias but for the shift |",
        "|---" * 9 + "|",
    ]
    for part in report.moments:
        shown = [
            _figure(part.base_rate, ".1%"), _figure(part.predicted, ".1%"), _figure(part.ratio, ".2f"),
            _figure(part.bias, "+.4f"), _bound(part.within, part.bound), _figure(part.shifted_bias, "+.4f"),
        ]  # fmt: skip
        lines.append(f"| {part.name} | {part.rows:,} | {part.customers:,} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _moment_metrics(report: TrainReport) -> str:
    return _metrics_by_part("moment", report.moments, list(report.evaluation.values["auroc"]))


def _group_table(report: TrainReport) -> str:
    counted = [part for part in report.groups if part.counts]
    if not counted:
        return "No group of customers is large enough to be looked at by itself."
    table = _metrics_by_part("snapshots of customers", counted, list(report.evaluation.values["auroc"]))
    return f"By group, log loss and in brackets AUROC:\n\n{table}"


def _metrics_by_part(what: str, parts: Sequence[Part], names: Sequence[str]) -> str:
    lines = [f"| {what} | rows | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for part in parts:
        values = part.values or {"log_loss": {}, "auroc": {}}
        cells = [
            f"{_figure(values['log_loss'].get(name), '.3f')} ({_figure(values['auroc'].get(name), '.3f')})"
            for name in names
        ]
        lines.append(f"| {part.name} | {part.rows:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(value: Figure, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _bound(within: bool | None, bound: Figure) -> str:
    return "" if within is None else f"{'yes' if within else 'NO'}, {bound:.4f}"


def _refusals(report: TrainReport) -> str:
    if not report.refusals:
        return ""
    lines = "\n".join(f"- {each}" for each in report.refusals)
    return f"## Published by force\n\nThe gate refused this model:\n\n{lines}\n\n"


def _cautions(report: TrainReport) -> str:
    if not report.cautions:
        return ""
    lines = "\n".join(f"- {each}" for each in report.cautions)
    return f"## With caution\n\n{lines}\n\n"


def _span(report: TrainReport) -> str:
    return " to ".join(format_date(t) for t in report.slices.test)


def _slice_table(report: TrainReport) -> str:
    lines = ["| slice | from | to | rows |", "|---|---|---|---|"]
    for name, span in report.spans.items():
        start, end = span or ("", f"{HELD_OUT_PERCENT} % of the customers of the train slice")
        lines.append(f"| {name} | {start} | {end} | {report.examples[name]:,} |")
    return "\n".join(lines) + f"\n\nLabels were closed at {format_time(report.labels_until_ms)}."


def _scheme(report: TrainReport) -> str:
    recipe = report.recipe
    parts = []
    if recipe.share < 1:
        network = (
            f"a network after {recipe.epochs} epochs, {recipe.shrinkage:.1f} of what training added to the linear "
            "model that it begins as"
            if recipe.epochs and recipe.shrinkage
            else "the linear model that the network begins as, on which nothing improved"
        )
        parts.append(f"{1 - recipe.share:.0%} {network}")
    if recipe.share:
        parts.append(f"{recipe.share:.0%} a forest of boosted trees")
    found = (
        f"The logit is {' and '.join(parts)}. This recipe, with its calibrator, was found by forward cross-fitting "
        f"({report.folds} fold{'s' if report.folds > 1 else ''}) before the test slice."
    )
    if not report.refit:
        return f"{found} The model that was judged is the one that is published."
    return (
        f"{found}\n\n**What was judged and what is published.** The figures above are of a model that learned from "
        f"{report.examples['judged']:,} rows whose horizon was over before the test slice. The published one is the "
        f"same recipe a slice later: trained on {report.examples['refit']:,} of all labelled rows, so that it ends "
        "where the labels end, and calibrated on what the judged model said of the test slice. The figures speak for "
        "the recipe."
    )


def _sequence(report: TrainReport, spec: Spec, config: TrainConfig) -> str:
    """What the ring adds over the aggregates, and what it costs."""
    added = report.added
    if report.target != spec.target_names[0]:
        return f"Its head reads the sequence as {spec.target_names[0]} does: one trunk serves all targets."
    if added is None:
        return "The model does not read the sequence of events (`--without-sequence`): aggregates alone."
    found = (
        f"Against the same model without it, on later rows before the test slice, the sequence of events adds "
        f"{added.auroc:+.4f} AUROC ({_interval(added.auroc_interval, '+.4f')}) and {added.log_loss:+.4f} log loss "
        f"({_interval(added.log_loss_interval, '+.4f')})."
    )
    if not added.nothing:
        return found
    saved = 1 - multiplications(spec, without_sequence(config.network)) / multiplications(
        spec, config.network
    )
    return (
        f"{found} That is nothing beyond chance: `--without-sequence` trains and scores with aggregates alone, and "
        f"saves {saved:.0%} of the network's multiplications a row."
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
    alerted = f"{tested.alerted:.1%} in the test slice{right}, where {tested.alert_rate:.0%} were asked for"
    return f"The evaluated model's own, chosen on the horizon before the test slice, alerted {alerted}.{_tie(tested)}"


def _tie(thresholds: Thresholds) -> str:
    words = thresholds.tie_words
    return f" {words[0].upper()}{words[1:]}: no threshold meets the share asked for." if words else ""


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
