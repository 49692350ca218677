"""`ebbtide model`: what a published model says of itself, whether it is still what was published, and which one serves.

It reads and writes files beside models and loads none, so none of its commands waits for TensorFlow.
"""

import contextlib
import os
import tempfile
from pathlib import Path

import click
from rich.table import Table

from ebbtide.featurestore.times.durations import format_duration
from ebbtide.model.errors import ModelMissing, ModelUnwritable
from ebbtide.model.serving import folder, signature
from ebbtide.model.serving.manifest import verify
from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.errors import SettingsError


@click.group()
def command() -> None:
    """Show what a published model is; choose which version serves."""


@command.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@config_option
@json_option
def show(directory: Path, config: Path | None, json_path: Path | None) -> None:
    """What the model in DIR is: a version's folder, or a folder above it, of which the pinned or else the latest
    version is taken.

    Every file is checked against the manifest first, and the manifest's signature where `model_key` is set.
    """
    with steps() as progress:
        progress("checking the files")
        path = folder.locate(directory)
        manifest = verify(path, key=_key(load_settings(config)))
    one = folder.pinned(path.parent)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    auroc = manifest.evaluation.values["auroc"] if manifest.evaluation else {}
    rows = {
        "model": manifest.title,
        "folder": str(path),
        "pinned": "no: workers serve the highest good version" if one is None else f"version {one}",
        "made": f"{manifest.created:%Y-%m-%d %H:%M} UTC with "
        + ", ".join(f"{name} {version}" for name, version in manifest.libraries.items()),
        "answers": f"{manifest.parsed_spec().churn_words} within {format_duration(manifest.horizon_ms)}?",
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


@command.command()
@click.argument("version", type=click.Path(path_type=Path), metavar="DIR/VERSION")
@config_option
def pin(version: Path, config: Path | None) -> None:
    """Have all workers of a model's folder serve that VERSION and no other, higher or lower: the way back.

    They take it within `model_watch_s`, one that starts takes it or does not start. It stays so, whatever is published,
    until `ebbtide model unpin`. The version is checked first.
    """
    number = folder.version_of(version.name)
    if number is None or not version.is_dir():
        raise ModelMissing(f"{version} is no version's folder", hint="name one, as in models/demo/3")
    verify(version, key=_key(load_settings(config)))
    folder.pin(version.parent, number)
    console().print(f"pinned: workers serve {version.parent.name}/{number}, whatever is published")


@command.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
def unpin(directory: Path) -> None:
    """Have the workers of a model's folder DIR serve the highest good version again."""
    home = folder.home_of(directory)
    was = folder.unpin(home)
    console().print(f"{home.name}: " + ("no longer pinned" if was else "no version was pinned"))


@command.command()
@click.argument("version", type=click.Path(path_type=Path), metavar="DIR/VERSION")
@config_option
def sign(version: Path, config: Path | None) -> None:
    """Sign a VERSION with `model_key`, after checking its files: workers that have the key serve what is signed only.

    `ebbtide train` does not hold the key: sign what it published, where the key is.
    """
    key = _key(load_settings(config))
    if key is None:
        raise SettingsError("no key is set", hint="set EBBTIDE_MODEL_KEY_FILE")
    path = folder.locate(version)
    verify(path)
    _write(path / signature.SIGNATURE, signature.sign((path / folder.MANIFEST).read_bytes(), key) + "\n")
    console().print(f"signed {path}")


def _key(settings: Settings) -> str | None:
    return settings.model_key.get_secret_value() if settings.model_key else None


def _write(path: Path, text: str) -> None:
    """There whole or not at all."""
    try:
        with contextlib.ExitStack() as undo:
            handle, name = tempfile.mkstemp(prefix=".signing-", dir=path.parent)
            undo.callback(Path(name).unlink, missing_ok=True)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(text)
                os.fchmod(file.fileno(), 0o644)
            Path(name).rename(path)
            undo.pop_all()
    except OSError as error:
        raise ModelUnwritable(
            f"{path} cannot be written: {error.strerror}", hint="sign where it is writable"
        ) from error
