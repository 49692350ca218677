"""`ebbtide replay`: a real log through the whole service, and what it would have said."""

import tempfile
from pathlib import Path

import click

from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.commands.options import DATE, config_option, dates, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.console import steps, table_and_json
from ebbtide.ops.observe import logs
from ebbtide.ops.stack.needed import stack
from ebbtide.ops.tensorflow import load_tensorflow


@click.command()
@config_option
@click.option("--events", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The log.")
@click.option(
    "--spec", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Its feature spec."
)
@click.option(
    "--model", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A model of that spec."
)
@click.option("--from", "from_ms", type=DATE, required=True, help="Stream from here on; fold what is before.")
@click.option(
    "--snapshot", "snapshots", callback=dates, required=True, metavar="DATE,…",
    help="Score every eligible customer of the live store as of these dates.",
)  # fmt: skip
@json_option
def command(
    config: Path | None,
    events: Path,
    spec: Path,
    model: Path,
    from_ms: int,
    snapshots: list[int],
    json_path: Path | None,
) -> None:
    """Fold a log up to a date, stream the rest through Kafka into a worker, judge its scores and alerts.

    The worker lives under the log's own clock. Topics and keys of a run have its name; with your own servers they
    stay behind, to be looked at.
    """
    logs.configure("warning", "text")
    settings = load_settings(config, options={"spec": spec, "model": model})
    loaded = load_spec(spec)
    settings.check_spec(loaded)
    load_tensorflow()
    from ebbtide.ops.replay.command import run  # noqa: PLC0415 - brings TensorFlow, which is loaded quietly above

    with steps() as progress, stack(settings, progress) as complete, tempfile.TemporaryDirectory() as folder:
        table, data = run(complete, loaded, events, from_ms, snapshots, Path(folder), progress)
    table_and_json(table, data, json_path)
