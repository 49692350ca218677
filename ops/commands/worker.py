"""`ebbtide worker`: one worker until it is told to stop. What it is made of stands in `ops/worker/run.py`."""

import asyncio
from pathlib import Path

import click

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.model.serving import xla_cache
from ebbtide.ops.commands.options import config_option
from ebbtide.ops.config.child import keep_compiled
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.secrets import secrets_of
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import steps
from ebbtide.ops.observe import logs
from ebbtide.ops.processes.run import supervise
from ebbtide.ops.stack.needed import stack
from ebbtide.ops.tensorflow import apart, beside, leave
from ebbtide.ops.worker.connect import check_servers


@click.command()
@config_option
@click.option("--spec", type=click.Path(path_type=Path), metavar="FILE", help="Feature spec in YAML.")
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the model's versions."
)
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the HTTP face; 0 takes a free one.")
@click.option(
    "--alerts-from", type=click.Choice(["now", "start"]), help="At a first start: alert on the past, too?"
)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True,
              help="Workers under one supervisor, with one HTTP address: two cores each.")  # fmt: skip
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-form", type=click.Choice(["json", "text"]))
def command(
    config: Path | None,
    spec: Path | None,
    model: Path | None,
    port: int | None,
    alerts_from: str | None,
    processes: int,
    log_level: str | None,
    log_form: str | None,
) -> None:
    """Run a worker: fold events into state, score, alert. SIGTERM or Ctrl-C ends it in good order.

    Several workers share the partitions of the input topic.
    """
    settings = load_settings(
        config,
        options={
            "spec": spec, "model": model, "http.port": port, "alerts_from": alerts_from,
            "logs.level": log_level, "logs.form": log_form,
        },
    )  # fmt: skip
    if processes > 1:
        _supervise(settings, processes)
        return
    apart()
    logs.configure(settings.logs.level, settings.logs.form, secrets_of(settings).values())
    folder = xla_cache.prepare(settings.compiled)
    if folder is not None:
        keep_compiled(folder)
    with beside() as tensorflow:
        layout = Layout(load_spec(settings.spec))
        settings.check_spec(layout.spec)
        with steps() as progress, stack(settings, progress) as complete:
            if settings.local_kafka or settings.local_redis:
                progress(f"local servers run: Kafka at {complete.kafka.url}, Redis at {complete.redis.url}")
            progress.end()
            asyncio.run(check_servers(complete, layout))  # a wrong URL is told before TensorFlow is there
            tensorflow.result()
            from ebbtide.ops.worker.run import work  # noqa: PLC0415 - brings TensorFlow, which is loaded quietly above

            asyncio.run(work(complete))
    leave()


def _supervise(settings: Settings, processes: int) -> None:
    logs.configure(settings.logs.level, settings.logs.form, secrets_of(settings).values())
    with steps() as progress, stack(settings, progress) as complete:
        progress.end()
        asyncio.run(supervise(complete, processes))
