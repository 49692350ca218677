"""`ebbtide evaluate`: a published model on a log of events, at dates of one's own. See `model/training/offline.py`."""

from pathlib import Path
from typing import Any

import click

from ebbtide.featurestore.check.history import read_history
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.times.durations import format_duration
from ebbtide.ops.commands.options import DATE, dates, events_option, json_option
from ebbtide.ops.commands.train import show_crossed, show_survival
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.tables import evaluation, metrics_by, moments
from ebbtide.ops.tensorflow import load_tensorflow


@click.command()
@events_option
@click.option(
    "--model",
    "model_path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="A version's folder, or one above it: then the pinned or the latest.",
)
@click.option(
    "--snapshot",
    required=True,
    callback=dates,
    metavar="DATE,…",
    help="Everybody as of these dates is judged.",
)
@click.option(
    "--labels-until",
    "labels_until_ms",
    type=DATE,
    help="Take the log as known up to here.  [default: its end]",
)
@click.option(
    "--by-customers",
    "folds",
    type=click.IntRange(2, 20),
    metavar="FOLDS",
    help="Split by customers instead of time, as papers do: the recipe is fitted anew, and judged across them.",
)
@click.option(
    "--rows",
    "rows_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write every row as Parquet: probability, reasons, sequence.",
)
@click.option(
    "--plots", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Draw plots there."
)
@click.option("--bootstrap", type=click.IntRange(20), default=400, show_default=True)
@json_option
def command(
    events: Path, model_path: Path, snapshot: list[int], labels_until_ms: int | None, folds: int | None,
    rows_path: Path | None, plots: Path | None, bootstrap: int, json_path: Path | None,
) -> None:  # fmt: skip
    """Judge a published model on a log, without servers.

    The tables of `ebbtide train`, at dates of your own: everybody as of each date, and the decisions of the horizon
    that follows it. Baselines are fitted again on what the model knew.
    """
    for folder in (*((rows_path.parent,) if rows_path else ()), *((plots,) if plots else ())):
        folder.mkdir(parents=True, exist_ok=True)
    with steps() as progress:
        progress("loading TensorFlow")
        load_tensorflow()
        from ebbtide.model.examples.rows_file import write_scored  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.serving.folder import locate  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.serving.manifest import read_manifest  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.serving.scorer import Scorer  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.training.by_customers import cross_validate  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.training.offline import evaluate_model  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.training.plots import draw_horizons, draw_plots  # noqa: PLC0415 - loaded quietly above

        version = locate(model_path)
        manifest = read_manifest(version)
        spec = manifest.parsed_spec()
        progress("reading events")
        log = read_history(events, spec, progress=lambda share: progress.advance(share, 1.0))
        if folds is not None:
            config = manifest.training.model_copy(update={"bootstrap": bootstrap})
            crossed = cross_validate(
                log.events, spec, config, folds, snapshot, labels_until_ms=labels_until_ms, progress=progress
            )
        else:
            progress("loading the model")
            scorer = Scorer.load(version, Layout(spec))
            found = evaluate_model(
                log.events, scorer, snapshot, labels_until_ms=labels_until_ms, bootstrap=bootstrap,
                progress=progress,
            )  # fmt: skip
            if plots is not None:
                progress("drawing")
                for each in (found, *found.further):
                    folder = plots / each.target if each is not found else plots
                    folder.mkdir(parents=True, exist_ok=True)
                    draw_plots(folder, each.examples, each.scores)
                    if each.survival is not None:
                        draw_horizons(folder, each.survival)
            if rows_path is not None:
                progress("explaining")
                why = scorer.explain(found.points.rows, found.points.as_of)
                reasons = (why.values, why.contributions)
                write_scored(rows_path, found.examples, log.events.customers, found.scores, reasons, spec)
    data: dict[str, Any] = crossed.as_json() if folds is not None else found.as_json()
    if folds is not None:
        show_crossed(data)
    else:
        show(data)
    if rows_path and folds is None:
        console().print(
            f"Rows in {rows_path}, customers' ids in clear: only you may read it (mode 0600)", soft_wrap=True
        )
    table_and_json(None, data, json_path)


def show(data: dict[str, Any]) -> None:
    """The figures as tables, from their own JSON."""
    to, names = console(), list(data["auroc"])
    to.print(f"\n{data['model']}: churn is {data['churn']} within {format_duration(data['horizon_ms'])}")
    for date in data["learned_from"]:
        to.print(
            f"{date} is a date that the model has learned from: its figures flatter, and the trees' the most"
        )
    to.print("\nBy moment: decisions of the horizon after each date")
    to.print(moments(data["moments"]))
    to.print("\nLog loss, and in brackets AUROC")
    to.print(metrics_by("moment", data["moments"], names))
    for date, found in data["snapshots"].items():
        to.print(f"\nEverybody as of {date}: {found['rows']:,} customers, {found['base_rate']:.1%} churned")
        to.print(evaluation(found))
    if groups := [group for group in data["groups"] if group["counts"]]:
        to.print(metrics_by("group", groups, names))
    if data["alerted"] is not None:
        right = "" if data["precision"] is None else f", {data['precision']:.1%} of them rightly"
        to.print(
            f"\nAlerts: {data['alerted']:.1%} of the customers (asked for {data['alert_rate']:.1%}){right}"
            + (f"; {data['tie']}" if data.get("tie") else "")
        )
    show_survival(data)
    for each in data["further"]:
        to.print(f"\nTarget {each['target']}")
        show(each)
