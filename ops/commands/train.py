"""`ebbtide train`: a log of events in, a published model and its evaluation out. See `model/training/`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.times.durations import format_duration
from ebbtide.featurestore.times.timestamps import instant
from ebbtide.ops.commands.options import DATE, DURATION, json_option
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.tensorflow import load_tensorflow
from ebbtide.stream.clock import SystemClock

METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "log_loss": "log loss",
    "ece": "ECE",
    "lift_at_10": "lift at 10 %",
}


@click.command()
@click.option(
    "--events", type=click.Path(path_type=Path), required=True, metavar="FILE", help="CSV, JSONL or Parquet."
)
@click.option(
    "--spec",
    "spec_path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Feature spec.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of models; the new version is DIR/NAME/VERSION.",
)
@click.option(
    "--horizon",
    "horizon_ms",
    type=DURATION,
    help="Churn is no activity for so long, e.g. 28d.  [default: the spec's]",
)
@click.option(
    "--labels-until",
    "labels_until_ms",
    type=DATE,
    help="Take the log as known up to here, and no label from beyond.  [default: its last event]",
)
@click.option("--name", help="Name of the model.  [default: the spec's]")
@click.option(
    "--alert-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the customers who come up within a horizon that is to get an alert.  [default: 0.1]",
)
@click.option("--epochs", "epochs_max", type=click.IntRange(1), help="At most.")
@click.option("--batch", type=click.IntRange(8), help="Rows a step.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True))
@click.option(
    "--examples-max", type=click.IntRange(200), help="Rows to learn from and to judge on, all together."
)
@click.option("--bootstrap", type=click.IntRange(20), help="Resamplings behind each interval.")
@click.option(
    "--refit/--no-refit", default=None, help="Train the published network again on all that is labelled."
)
@click.option("--seed", type=click.IntRange(0))
@click.option(
    "--rows",
    "rows_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the examples as Parquet, for tools of your own.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes that walk through the history; the result is the same.",
)
@click.option(
    "--log-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Curves for TensorBoard.",
)
@json_option
def command(
    events: Path, spec_path: Path, out: Path, horizon_ms: int | None, labels_until_ms: int | None, name: str | None,
    rows_path: Path | None, jobs: int, json_path: Path | None, **choices: Any,
) -> None:  # fmt: skip
    """Train a model from a log of events, evaluate it beside honest baselines, publish it.

    The evaluation is on customers as of dates that the model has not learned from. A model that is clearly worse than
    the best baseline is not published.
    """
    spec = load_spec(spec_path)
    for folder in (out, *((rows_path.parent,) if rows_path else ())):
        folder.mkdir(
            parents=True, exist_ok=True
        )  # what cannot be written is better known before the training
    with steps() as progress:
        progress("loading TensorFlow")
        load_tensorflow()
        from ebbtide.model.config import TrainConfig  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.training.progress import Stages  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.training.train import respec, train_model  # noqa: PLC0415 - loaded quietly above

        clock = SystemClock()
        config = TrainConfig(**{key: value for key, value in choices.items() if value is not None})
        progress("training")
        published = train_model(
            events, respec(spec, name, horizon_ms), out, created=instant(clock.now_ms()),
            labels_until_ms=labels_until_ms, config=config, rows_path=rows_path, jobs=jobs,
            stages=Stages(progress.advance, clock.monotonic_s),
        )  # fmt: skip
    data = published.as_json()
    show(data)
    if rows_path:
        console().print(
            f"Examples in {rows_path}, customers' ids in clear: only you may read it (mode 0600)",
            soft_wrap=True,
        )
    table_and_json(None, data, json_path)


def show(data: Mapping[str, Any]) -> None:
    """The report as tables, from its own JSON."""
    to = console()
    to.print(
        f"\n{data['customers']:,} customers, {data['events']:,} events{_known(data)}; churn is no activity for "
        f"{format_duration(data['horizon_ms'])}\n\nOn the test slice, {_span(data['slices']['test'])}: "
        f"{data['test_rows']:,} snapshots of {data['test_customers']:,} customers, "
        f"{data['base_rate']:.1%} of them followed by churn",
        soft_wrap=True,
    )
    to.print(_evaluation(data))
    to.print("\nBy moment, at the decision points of the same slice")
    to.print(_moments(data["moments"]))
    tested, precision = data["alerted_in_test"], data["precision_in_test"]
    to.print(
        f"\nAlerts open at p ≥ {data['enter']:.3f} and end below {data['exit']:.3f}: {data['alerted']:.1%} of customers"
        f" in a horizon (asked for {data['alert_rate']:.1%})."
        + (f" In the test slice: {tested:.1%} alerted" if tested is not None else "")
        + (f", {precision:.1%} of them rightly" if precision is not None else "")
        + f"\nPublished {data['path']}  (model card: {data['path']}/model_card.md)",
        soft_wrap=True,
    )


def _known(data: Mapping[str, Any]) -> str:
    """Up to when the log counts, and what of it does not."""
    beyond = data["events_beyond"]
    left_out = f", {beyond:,} dated far ahead of all others left out" if beyond else ""
    return f" known until {data['labels_until'][:10]}{left_out}"


def _evaluation(data: Mapping[str, Any]) -> Table:
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


def _moments(moments: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    names = next((list(m["auroc"]) for m in moments if m.get("auroc")), [])
    for column in ("moment", "rows", "churned", "predicted", *(f"AUROC {name}" for name in names)):
        table.add_column(column, justify="left" if column == "moment" else "right")
    for m in moments:
        aurocs = (m.get("auroc") or {}).get
        shares = (_percent(m["base_rate"]), _percent(m.get("predicted")))
        table.add_row(m["moment"], f"{m['rows']:,}", *shares, *(_figure(aurocs(name)) for name in names))
    return table


def _with_interval(value: float | None, interval: Sequence[float | None] | None) -> str:
    if value is None or not interval or None in interval:
        return _figure(value)
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _span(span: Sequence[str]) -> str:
    return f"{span[0][:10]} to {span[1][:10]}"
