"""`ebbtide model`: what a published model says of itself, whether it is still what was published, which one serves; and
a version as a file for another runtime.

It reads and writes files beside models and loads none, so none of its commands but `export` waits for TensorFlow.
"""

import contextlib
import os
import tempfile
from pathlib import Path

import click
from rich.table import Table

from ebbtide.featurestore.times.durations import format_duration
from ebbtide.model.errors import ModelMissing, ModelUnwritable
from ebbtide.model.exporting.recipes import PRECISIONS
from ebbtide.model.serving import folder, signature
from ebbtide.model.serving.manifest import verify
from ebbtide.ops.commands.options import config_option, json_option
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.errors import SettingsError
from ebbtide.ops.tensorflow import load_tensorflow


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
    signed = signature.sign((path / folder.MANIFEST).read_bytes(), key) + "\n"
    _write(path / signature.SIGNATURE, signed.encode("ascii"), hint="sign where it is writable")
    console().print(f"signed {path}")


@command.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The file to write.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["litert"]),
    default="litert",
    show_default=True,
    help="Of the runtime that is to read it.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=PRECISIONS[0],
    show_default=True,
    help="Of the network's matrix products; features and trees stay float32.",
)
@config_option
@json_option
def export(
    directory: Path, out: Path, form: str, precision: str, config: Path | None, json_path: Path | None
) -> None:
    """Write the model in DIR (a version's folder, or one above it) as one file for a device without TensorFlow.

    What the file says is compared with what the version says, on its warm-up records. It takes a record as it is before
    a store packs it, `record: uint8[1, size]`, and `as_of: int64[1]`, ms UTC.
    """
    with steps() as progress:
        progress("checking the files")
        path = folder.locate(directory)
        manifest = verify(path, key=_key(load_settings(config)))
        progress("loading TensorFlow")
        load_tensorflow()
        from ebbtide.featurestore.record.layout import Layout  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.exporting.litert import apart, in_litert, quantised, sizes  # noqa: PLC0415 - loaded quietly above
        from ebbtide.model.serving import warmup  # noqa: PLC0415 - loaded quietly above

        progress("converting")
        layout = Layout(manifest.parsed_spec())
        made = quantised(in_litert(path, manifest), precision, *warmup.read(path, layout))
        progress("comparing")
        off, size = apart(path, manifest, made, precision), sizes(made)
        _write(out, made, hint="choose another --out")
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = {
        "file": str(out),
        "model": manifest.title,
        "form": f"{form}, {precision}",
        "takes": f"record: uint8[1, {layout.itemsize}], as_of: int64[1]",
        "bytes": f"{size.file:,}, gzipped {size.gzipped:,}; of weights and tables {size.weights:,}",
        "p differs": f"by {off:.2g} at most, over the version's warm-up records",
    }
    for name, words in rows.items():
        table.add_row(name, words)
    data = {
        "model": manifest.title, "file": str(out), "format": form, "precision": precision, "bytes": size.file,
        "gzipped": size.gzipped, "weights": size.weights, "difference_max": off, "record_bytes": layout.itemsize,
    }  # fmt: skip
    table_and_json(table, data, json_path)


def _key(settings: Settings) -> str | None:
    return settings.model_key.get_secret_value() if settings.model_key else None


def _write(path: Path, content: bytes, hint: str) -> None:
    """There whole or not at all."""
    try:
        with contextlib.ExitStack() as undo:
            handle, name = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
            undo.callback(Path(name).unlink, missing_ok=True)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o644)
            Path(name).rename(path)
            undo.pop_all()
    except OSError as error:
        raise ModelUnwritable(f"{path} cannot be written: {error.strerror}", hint=hint) from error
