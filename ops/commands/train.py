"""`ebbtide train`: a log of events in, a published model and its evaluation out: the factory's line with its defaults,
in a folder that ends with it. See `model/factory/line.py`, `model/training/`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ebbtide.featurestore.check.history import read_history
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.times.durations import format_duration
from ebbtide.model.factory.plan import Plan, sources_of
from ebbtide.model.training.progress import Stages
from ebbtide.ops.commands.options import (
    DATE,
    DURATION,
    engine_of,
    events_option,
    jobs_option,
    json_option,
    spark_option,
)
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.pipeline.train import train
from ebbtide.ops.tables import evaluation, horizons, metrics_by, moments, order_of
from ebbtide.ops.tensorflow import load_tensorflow
from ebbtide.stream.clock import SystemClock


@click.command()
@events_option
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
    help="Churn is, unless the spec says otherwise, no activity for so long, e.g. 28d.  [default: the spec's]",
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
@click.option(
    "--forest-share",
    type=click.FloatRange(0, 1),
    help="How much of the answer is the trees'.  [default: what cross-fitting finds]",
)
@click.option(
    "--without-sequence", is_flag=True, help="Aggregates alone: a fraction of the price of a scored row."
)
@click.option(
    "--prune",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the network's weights that become zero; the others learn on. For a small export.  [default: 0]",
)
@click.option(
    "--cross-validate",
    "folds",
    type=click.IntRange(2, 20),
    metavar="FOLDS",
    help="Judge the recipe over customers in so many parts, as of the last date with a known outcome; publish nothing.",
)
@click.option("--force", is_flag=True, help="Publish what the gate refuses, with its words in the card.")
@click.option("--seed", type=click.IntRange(0))
@click.option(
    "--rows",
    "rows_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the examples as Parquet, for tools of your own.",
)
@jobs_option
@spark_option
@click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep what each stage made, customers' ids in clear, and reuse what has not changed.",
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
    rows_path: Path | None, jobs: int, spark: str | None, without_sequence: bool, folds: int | None, force: bool,
    runs: Path | None, json_path: Path | None, **choices: Any,
) -> None:  # fmt: skip
    """Train a model from a log of events, evaluate it beside honest baselines, publish it.

    The evaluation is on a time that the model has not learned from. A model that is clearly worse than a baseline, or
    whose probabilities or alerts are far off, is not published.
    """
    engine, spec = engine_of(jobs, spark), load_spec(spec_path)
    for folder in (out, *((rows_path.parent,) if rows_path else ())):
        folder.mkdir(
            parents=True, exist_ok=True
        )  # what cannot be written is better known before the training
    with steps() as progress:
        progress("loading TensorFlow")
        load_tensorflow()
        from ebbtide.model.config import DROPOUT, TrainConfig  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.graph.sizes import NetworkConfig  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.training.by_customers import cross_validate  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.training.train import respec  # noqa: PLC0415 - loaded quietly above

        clock = SystemClock()
        network = NetworkConfig(dropout=DROPOUT, sequence=not without_sequence)
        chosen = {key: value for key, value in choices.items() if value is not None}
        config = TrainConfig(**chosen, network=network)
        asked = respec(spec, name, horizon_ms)
        if folds is not None:
            progress("reading events")
            log = read_history(events, asked, progress=lambda share: progress.advance(share, 1.0))
            data = cross_validate(
                log.events, asked, config, folds, labels_until_ms=labels_until_ms, progress=progress
            ).as_json()
        else:
            progress("training")
            plan = Plan(
                spec=asked, events=(str(events),), sources=sources_of([events]), out=out, config=config,
                labels_until_ms=labels_until_ms, engine=engine, force=force,
            )  # fmt: skip
            data = train(plan, clock, Stages(progress.advance, clock.monotonic_s), runs, rows_path)
    if folds is not None:
        show_crossed(data)
    else:
        show(data)
    if rows_path and folds is None:
        console().print(
            f"Examples in {rows_path}, customers' ids in clear: only you may read it (mode 0600)",
            soft_wrap=True,
        )
    table_and_json(None, data, json_path)


def show_crossed(data: Mapping[str, Any]) -> None:
    """A cross-validation over customers as a table."""
    console().print(
        f"\n{data['rows']:,} customers in {data['folds']} parts, as of {', '.join(data['dates'])}; "
        f"{data['base_rate']:.1%} of them churned. Nothing is published.",
        soft_wrap=True,
    )
    console().print(evaluation(data))


def show(data: Mapping[str, Any]) -> None:
    """The report as tables, from its own JSON."""
    to = console()
    names = list(data["auroc"])
    to.print(
        f"\n{data['customers']:,} customers, {data['events']:,} events{_known(data)}; churn is {data['churn']} within "
        f"{format_duration(data['horizon_ms'])}\n\nBy moment, where alerts are decided: decision points of the test "
        f"slice, {_span(data['slices']['test'])}",
        soft_wrap=True,
    )
    to.print(moments(data["moments"]))
    to.print("\nLog loss, and in brackets AUROC")
    to.print(metrics_by("moment", data["moments"], names))
    to.print(
        f"\nOn snapshots: {data['test_rows']:,} of {data['test_customers']:,} customers, {data['base_rate']:.1%} of "
        "them followed by churn",
        soft_wrap=True,
    )
    to.print(evaluation(data))
    if groups := [group for group in data["groups"] if group["counts"]]:
        to.print(metrics_by("group", groups, names))
    show_survival(data)
    tested, precision = data["alerted_in_test"], data["precision_in_test"]
    to.print(
        f"\n{_recipe(data)}\nAlerts open at p ≥ {data['enter']:.3f} and end below {data['exit']:.3f}: "
        f"{data['alerted']:.1%} of customers in a horizon (asked for {data['alert_rate']:.1%})."
        + (f" In the test slice: {tested:.1%} alerted" if tested is not None else "")
        + (f", {precision:.1%} of them rightly" if precision is not None else "")
        + (f".\nAlerts in the last horizon: {data['tie']}" if data.get("tie") else "")
        + "".join(f"\nPublished by force, although: {each}" for each in data["refusals"])
        + "".join(f"\nWith caution: {each}" for each in data["cautions"])
        + (
            f"\nPublished {data['path']}  (model card: {data['path']}/model_card.md)"
            if "path" in data
            else ""
        ),
        soft_wrap=True,
    )
    for each in data["further"]:
        to.print(f"\nTarget {each['target']}")
        show(each)


def show_survival(data: Mapping[str, Any]) -> None:
    """By horizon, where the model knows more than one."""
    if data["survival"]:
        console().print("\nBy horizon: that nothing has come yet (in brackets, by the probability alone)")
        console().print(horizons(data["survival"]))
        console().print(order_of(data["survival"]))


def _recipe(data: Mapping[str, Any]) -> str:
    """How the model is made, and what the sequence is worth."""
    made = f"Made of {data['forest_share']:.0%} trees; the network after {data['epochs']} epochs."
    if len(data["rows_taken"]) > 1:
        by = ", ".join(f"{rows:,}" for rows in data["rows_taken"])
        made = f"{made} Of their rows each worker took {by}."
    added = data["sequence_adds"]
    if added is None:
        return made
    words = f"{made} The sequence adds {added['auroc']:+.4f} AUROC and {added['log_loss']:+.4f} log loss"
    return (
        f"{words}: nothing beyond chance, so --without-sequence would do."
        if added["nothing"]
        else f"{words}."
    )


def _known(data: Mapping[str, Any]) -> str:
    """Up to when the log counts, and what of it does not."""
    beyond = data["events_beyond"]
    left_out = f", {beyond:,} dated far ahead of all others left out" if beyond else ""
    return f" known until {data['labels_until'][:10]}{left_out}"


def _span(span: Sequence[str]) -> str:
    return f"{span[0][:10]} to {span[1][:10]}"
