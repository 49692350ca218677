"""`ebbtide tune`: other choices for a pipeline's training, tried on a time before its test slice."""

from pathlib import Path

import click
import yaml

from ebbtide.model.training.progress import Stages
from ebbtide.ops.commands.options import json_option
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.pipeline.config import load_config
from ebbtide.ops.pipeline.run import Runner
from ebbtide.ops.pipeline.store import Store
from ebbtide.ops.pipeline.tune import tune
from ebbtide.ops.tensorflow import load_tensorflow
from ebbtide.stream.clock import SystemClock


@click.command()
@click.option(
    "--config", "file", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE",
    help="The pipeline in YAML, whose examples are searched over.",
)  # fmt: skip
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, help="Of the study, all together."
)
@click.option(
    "--log-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="A run a trial for TensorBoard.",
)
@json_option
def command(file: Path, trials: int, log_dir: Path | None, json_path: Path | None) -> None:
    """Search for better choices of training. Called again it goes on where it was.

    Trials are judged on the last fold before the test slice; what they find is for you to write into the configuration.
    """
    config = load_config(file)
    clock = SystemClock()
    with steps() as progress:
        progress("reading what there is")
        runner = Runner(
            Store(config.runs), config.plan(), clock, Stages(progress.advance, clock.monotonic_s),
            lambda name, what: progress(f"{name} ({what})"), load_tensorflow,
        )  # fmt: skip
        found = tune(runner, trials, log_dir, progress).as_json()
    was = "" if found["first"] is None else f" (the configuration as it is: {found['first']:.4f})"
    console().print(
        f"{found['trials']} trials, {found['pruned']} of them ended early. Log loss {found['log_loss']:.4f}{was}:\n\n"
        + yaml.safe_dump({"train": found["train"]}, sort_keys=False),
        soft_wrap=True,
    )
    table_and_json(None, found, json_path)
