"""`ebbtide pipeline`: the model factory, stage by stage. See `model/factory/line.py`, `ops/pipeline/`."""

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from ebbtide.model.factory.line import ANOMALIES, BY_NAME, EVALUATION, PICTURE, SCHEMA, STAGES
from ebbtide.model.training.progress import Stages
from ebbtide.ops.commands.options import json_option, spark_option
from ebbtide.ops.config.child import child_environment
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.console import Steps, console, steps, table_and_json
from ebbtide.ops.errors import SettingsError
from ebbtide.ops.pipeline.cluster import run_cluster
from ebbtide.ops.pipeline.config import PipelineConfig, load_config
from ebbtide.ops.pipeline.run import NAMES, Runner, pushed
from ebbtide.ops.pipeline.skew import as_json
from ebbtide.ops.pipeline.skew import skew as examine_skew
from ebbtide.ops.pipeline.store import Store
from ebbtide.ops.pipeline.watch import watch as keep_watching
from ebbtide.ops.tensorflow import hushed, load_tensorflow
from ebbtide.stream.clock import SystemClock

CLUSTERED = ("multi_worker", "parameter_server")
BACKUP = "backup"
DISTRIBUTED = ("trainer", "refitter")
"""Stages that every worker runs at once; the others run on one machine."""
config_option = click.option(
    "--config", "file", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE",
    help="The pipeline in YAML: events, spec, out, runs.",
)  # fmt: skip


@click.group()
def command() -> None:
    """The model factory: from files of events to a published version, in stages.

    Each stage makes one artifact of its inputs. What has not changed is not done again, and a run that was ended goes
    on where it was.
    """


@command.command()
@config_option
@spark_option
@json_option
def run(file: Path, spark: str | None, json_path: Path | None) -> None:
    """Run every stage that is not done yet, and publish what passes the gate."""
    config = load_config(file).on_spark(spark)
    with steps() as progress:
        runner = _runner(config, progress)
        record = runner.run()
        _settle(config, runner)
    _show(runner.store, record)
    table_and_json(None, record, json_path)


@command.command()
@click.argument("name", type=click.Choice(NAMES))
@config_option
@click.option(
    "--workers", type=click.IntRange(1, 64), metavar="N",
    help="So many processes of this machine share the work of trainer or refitter (strategy: multi_worker); when one is"
    " killed, all are started again and go on at their last epoch.",
)  # fmt: skip
@spark_option
@json_option
def stage(name: str, file: Path, workers: int | None, spark: str | None, json_path: Path | None) -> int:
    """Run one stage, of what the stages before it have left: for a scheduler with a container for each."""
    config = load_config(file).on_spark(spark)
    if workers is not None:
        if config.train.strategy != "multi_worker" or name not in DISTRIBUTED:
            raise SettingsError(
                f"{name} is not shared out: --workers is for {' and '.join(DISTRIBUTED)} with strategy: multi_worker",
                hint="set train: {strategy: multi_worker}, or leave --workers out",
            )
        command = [sys.executable, "-m", "ebbtide.ops.cli", "pipeline", "stage", name, "--config", str(file)]
        said = [] if json_path is None else ["--json", str(json_path)]
        return run_cluster(
            [*command, *said], workers, child_environment(), lambda words: console().print(words)
        )
    with steps() as progress:
        runner = _runner(config, progress)
        if config.train.strategy == "multi_worker" and name in DISTRIBUTED and not _leads(progress):
            progress(f"{name} (with the first worker, who keeps it)")
            runner.follow(name)
            return 0
        record = runner.run([name])
        if name in DISTRIBUTED:
            shutil.rmtree(config.runs / BACKUP, ignore_errors=True)  # it is an artifact now
        if name == "schema_gen":
            config.offer_schema(runner.value("schema_gen"))
    _show(runner.store, record)
    table_and_json(None, record, json_path)
    return 0


@command.command()
@config_option
@json_option
def status(file: Path, json_path: Path | None) -> None:
    """What a run would reuse and what it would make, and how the last one ended. Changes nothing."""
    config = load_config(file)
    store = Store(config.runs)
    found = Runner(store, config.plan(), SystemClock()).look()
    numbers = store.runs()
    last: dict[str, Any] = store.read_run(numbers[-1]) if numbers else {}
    table = Table("stage", "", "seconds", "what it does")
    for each in STAGES:
        there = found[each.name]
        table.add_row(
            each.name, "made" if there else "to do", f"{there.seconds:.1f}" if there else "", each.words
        )
    if last:
        ended = "is under way" if store.busy else f"ended {last['outcome']}"
        console().print(
            f"Run {last['run']} {ended}" + (f": {last['error']}" if last["error"] else ""), soft_wrap=True
        )
    data = {
        "stages": {name: there is not None for name, there in found.items()},
        "last": last,
        "busy": store.busy,
    }
    table_and_json(table, data, json_path)


@command.command()
@click.argument("number", metavar="RUN", type=click.IntRange(1), required=False)
@config_option
@json_option
def show(number: int | None, file: Path, json_path: Path | None) -> None:
    """What a run made of what, how long it took and what came of it.  [default: the last one]"""
    store = Store(load_config(file).runs)
    numbers = store.runs()
    record = store.read_run(number or (numbers[-1] if numbers else 1))
    _show(store, record)
    table_and_json(None, record, json_path)


@command.command()
@config_option
@click.option(
    "--settings",
    "worker",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The worker's settings: which Kafka, which topic.  [default: EBBTIDE_...]",
)
@click.option(
    "--records", type=click.IntRange(1), help="Of the topic, the last ones.  [default: watch.records]"
)
@json_option
def skew(file: Path, worker: Path | None, records: int | None, json_path: Path | None) -> int:
    """Compare the live topic with the history that the last run learned from.

    Training-serving skew: the same kinds and fields, counted by the same bins. Exit code 1 where the schema's
    `skew_max` is passed.
    """
    config = load_config(file)
    settings = load_settings(worker or config.watch.settings)
    with steps() as progress:
        progress(f"reading {settings.kafka.topic}")
        found = asyncio.run(
            examine_skew(config, settings.kafka, settings.parse_limits, records or config.watch.records)
        )
    table = Table("kind", "share in history", "share live", "events live", box=None, pad_edge=False)
    for name, kind in found.known.kinds.items():
        live = None if found.live is None else found.live.kinds[name]
        now = ("", "") if live is None else (f"{live.share:.1%}", f"{live.events:,}")
        table.add_row(name, f"{kind.share:.1%}", *now)
    table_and_json(table, as_json(found), json_path)
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in found.rejected.items())
    console().print(
        f"{found.records:,} records, history of run {found.run}"
        + (f"; rejected: {rejected}" if rejected else "")
    )
    if found.live is None:
        console().print("too few events to say anything")
    for each in found.anomalies:
        console().print(Text.assemble((str(each), "yellow"), f": {each.advice}"), soft_wrap=True)
    return 1 if found.anomalies else 0


@command.command()
@config_option
def watch(file: Path) -> None:
    """Start a run when new files have come; with `watch.start_on: skew`, when the live topic has moved as well.

    A run that fails leaves the old version in service, and says why.
    """
    keep_watching(file, lambda words: console().print(words, soft_wrap=True))


def _leads(progress: Steps) -> bool:
    progress("loading TensorFlow")
    with hushed():
        from ebbtide.model.fitting.distribute import leads  # noqa: PLC0415 - the import is what is hushed

        return leads("multi_worker")


def _runner(config: PipelineConfig, progress: Steps) -> Runner:
    clock = SystemClock()
    progress("reading what there is")
    plan = config.plan()
    if config.train.strategy == "multi_worker":
        plan = replace(plan, config=plan.config.model_copy(update={"backup_dir": config.runs / BACKUP}))

    def told(name: str, what: str) -> None:
        progress(f"{name} ({what})")

    def loading() -> None:
        progress("loading TensorFlow")
        if config.train.strategy in CLUSTERED:
            with hushed():  # before anything else is asked of TensorFlow
                from ebbtide.model.fitting.distribute import serve, strategy_of  # noqa: PLC0415 - loaded quietly

            serve(config.train.strategy)
            strategy_of(config.train.strategy)
        load_tensorflow()

    config.out.mkdir(parents=True, exist_ok=True)
    shown: Callable[[float, float, str], None] = progress.advance
    return Runner(Store(config.runs), plan, clock, Stages(shown, clock.monotonic_s), told, loading)


def _settle(config: PipelineConfig, runner: Runner) -> None:
    config.offer_schema(runner.value("schema_gen"))
    runner.store.forget(config.keep_runs)


def _show(store: Store, record: dict[str, Any]) -> None:
    to = console()
    to.print(
        f"\nRun {record['run']} of {record['spec']}, {record['files']} files: {record['outcome']}"
        + (f", {record['error']}" if record["error"] else ""),
        soft_wrap=True,
    )
    table = Table("stage", "", "seconds", "key", "made of")
    for name, of in record["stages"].items():
        made = "reused" if of["reused"] else "made"
        table.add_row(
            name, made, f"{of['seconds']:.1f}", of["key"][:8], ", ".join(of["inputs"]) or "files of events"
        )
    to.print(table)
    artifacts = {
        name: store.find(name, of["key"]) for name, of in record["stages"].items() if name in BY_NAME
    }
    if found := artifacts.get("example_validator"):
        for each in json.loads((found.folder / ANOMALIES).read_text(encoding="utf-8")):
            to.print(
                f"{each['severity']}: {each['where']}: {each['words']} ({each['advice']})", soft_wrap=True
            )
    if found := artifacts.get("evaluator"):
        said = json.loads((found.folder / EVALUATION).read_text(encoding="utf-8"))
        figures = ", ".join(
            f"{name} {value:.4f}" for name, value in said["auroc"].items() if value is not None
        )
        to.print(f"AUROC on snapshots of the test slice: {figures}", soft_wrap=True)
        for refusal in said["refusals"]:
            to.print(f"the gate: {refusal}", soft_wrap=True)
        for caution in said.get("cautions", ()):  # a run of an older release has none
            to.print(f"with caution: {caution}", soft_wrap=True)
    for name, file in (("statistics_gen", PICTURE), ("schema_gen", SCHEMA)):
        if found := artifacts.get(name):
            to.print(f"{file}: {found.folder / file}", soft_wrap=True)
    if found := artifacts.get("pusher"):
        to.print(f"published {pushed(found.folder)['path']}", soft_wrap=True)
