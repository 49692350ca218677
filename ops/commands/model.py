"""`ebbtide model show`: what a published model says of itself, and whether its files are still what was published."""

from pathlib import Path

import click
from rich.table import Table

from ebbtide.featurestore.times.durations import format_duration
from ebbtide.ops.commands.options import json_option
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.tensorflow import load_tensorflow


@click.group()
def command() -> None:
    """Show what a published model is."""


@command.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@json_option
def show(directory: Path, json_path: Path | None) -> None:
    """What the model in DIR is: a version's folder, or a folder above it, of which the latest version is taken.

    Every file is checked against the manifest first.
    """
    with steps() as progress:
        progress("loading TensorFlow")
        load_tensorflow()
        from ebbtide.model.serving.artifact import locate, verify  # noqa: PLC0415 - loaded quietly above

        progress("checking the files")
        path = locate(directory)
        manifest = verify(path)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    auroc = manifest.evaluation.values["auroc"] if manifest.evaluation else {}
    rows = {
        "model": manifest.title,
        "folder": str(path),
        "made": f"{manifest.created:%Y-%m-%d %H:%M} UTC with "
        + ", ".join(f"{name} {version}" for name, version in manifest.libraries.items()),
        "answers": f"will there be no activity for {format_duration(manifest.horizon_ms)}?",
        "record layout": manifest.layout_id,
        "features": f"{len(manifest.features)}",
        "alerts": f"open at p ≥ {manifest.enter:.3f}, end below {manifest.exit:.3f}"
        f" (asked for {manifest.alert_rate:.1%} of customers)",
        "AUROC": ", ".join(f"{name} {value:.3f}" for name, value in auroc.items()) or "-",
        "data": manifest.data_hash,
        "padded sizes": ", ".join(map(str, manifest.sizes)),
        "files": f"{len(manifest.files)}, all as published",
    }
    for name, words in rows.items():
        table.add_row(name, words)
    table_and_json(table, manifest.model_dump(mode="json"), json_path)
    card = path / "model_card.md"
    if card.is_file():
        console().print(f"\nmore in {card}", soft_wrap=True)
