"""The figures of a model as tables for a person, from the JSON of a report. It computes nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ebbtide.featurestore.times.durations import format_duration

METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "log_loss": "log loss",
    "ece": "ECE",
    "lift_at_10": "lift at 10 %",
}


def evaluation(data: Mapping[str, Any]) -> Table:
    """Figures on snapshots with their intervals, a column a name."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in data["auroc"]:
        table.add_column(name, justify="right")
    for metric, words in METRICS.items():
        intervals = data.get(f"{metric}_interval", {})
        table.add_row(
            words, *(_with_interval(value, intervals.get(name)) for name, value in data[metric].items())
        )
    return table


def moments(parts: Sequence[Mapping[str, Any]]) -> Table:
    """Is p to be believed, moment by moment."""
    table = Table(box=None, pad_edge=False)
    columns = (
        "moment",
        "rows",
        "customers",
        "churned",
        "predicted",
        "ratio",
        "bias",
        "bound",
        "bias but for the shift",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "moment" else "right")
    for m in parts:
        figures = (_figure(m.get(name)) for name in ("bias", "bound", "shifted_bias"))
        table.add_row(
            m["moment"], f"{m['rows']:,}", f"{m['customers']:,}", _percent(m["base_rate"]),
            _percent(m.get("predicted")), "-" if m.get("ratio") is None else f"{m['ratio']:.2f}", *figures,
        )  # fmt: skip
    return table


def metrics_by(what: str, parts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    """Log loss (AUROC) of each name, a row a part."""
    table = Table(box=None, pad_edge=False)
    for column in (what, "rows", *names):
        table.add_column(column, justify="left" if column == what else "right")
    for part in parts:
        lost, ranked = (part.get(metric) or {} for metric in ("log_loss", "auroc"))
        cells = (f"{_figure(lost.get(name))} ({_figure(ranked.get(name))})" for name in names)
        table.add_row(part[what], f"{part['rows']:,}", *cells)
    return table


def horizons(found: Mapping[str, Any]) -> Table:
    """Survival by horizon, and in brackets what the probability of one horizon says of all."""
    table = Table(box=None, pad_edge=False)
    for column in ("horizon", "rows", "stayed away", "AUROC", "ECE", "perfect"):
        table.add_column(column, justify="left" if column == "horizon" else "right")
    for at in found["horizons"]:
        cells = (
            f"{_figure(named.get('model'))} ({_figure(named.get('first_head'))})"
            for named in (at["values"].get("auroc", {}), at["values"].get("ece", {}))
        )
        table.add_row(
            format_duration(at["horizon_ms"]), f"{at['rows']:,}", _percent(at["stayed_away"]), *cells,
            _figure(at["ece_bound"]),
        )  # fmt: skip
    return table


def order_of(found: Mapping[str, Any]) -> str:
    """How often of two customers the one expected later came later, in words."""
    model, alone = (found["concordance"][name] for name in ("model", "first_head"))
    return f"Concordance of the time to the next event {_figure(model)}, by the probability alone {_figure(alone)}"


def _with_interval(value: float | None, interval: Sequence[float | None] | None) -> str:
    if value is None or not interval or None in interval:
        return _figure(value)
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
