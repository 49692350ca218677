"""A published model: a SavedModel in TF Serving's directory form, and a manifest that says what it is.

    models/<name>/<version>/            versions are ascending integers; what has appeared there never changes
        manifest.json                   what it is, what it was made from, sha256 of every other file
        manifest.hmac                   its signature, where a key is set (`signature.py`)
        saved_model.pb  variables/      the graph (`model/graph/served.py`) and its weights
        assets.extra/                   warm-up records
        model_card.md, plots            whatever the trainer attached

It knows files and names; it knows neither training nor scoring. The invariant: *a version is there
whole or not at all*. It is written beside its place, synced to disk and renamed; whoever watches the folder
never sees half of one. What is loaded is what was published: `verify` reads every byte again and refuses by
name.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import Spec, dump_spec
from ebbtide.model.errors import ModelUnwritable
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.graph.forest import Forest
from ebbtide.model.graph.hazard import Hazard
from ebbtide.model.graph.head import Head
from ebbtide.model.graph.served import Served
from ebbtide.model.serving import signature, warmup
from ebbtide.model.serving.folder import MANIFEST, sync, versions
from ebbtide.model.serving.manifest import Facts, Manifest, files_of, read_manifest, sha256_of, verify

__all__ = ["SIZES", "Facts", "export", "push"]

SIZES = (8, 32, 128, 512)
"""Padded sizes, ascending: 8 for the lone event, 512 where throughput has flattened out."""
LIBRARIES = ("ebbtide", "tensorflow", "keras", "numpy")


def export(
    directory: Path,
    spec: Spec,
    network: keras.Model,
    calibrator: Calibrator,
    facts: Facts,
    warm_up: tuple[Rows, NDArray[np.int64]],
    *,
    forest: Forest | None = None,
    share: float = 0.5,
    hazard: Hazard | None = None,
    further: Sequence[Head] = (),
    version: int | None = None,
    sizes: tuple[int, ...] = SIZES,
    attach: Callable[[Path], None] | None = None,
    key: str | None = None,
) -> Path:
    """Publish `network` (float32) as `directory/<spec.name>/<version>` and return that path.

    calibrator, forest, share, hazard: of the primary target's head; further: the heads of the spec's other targets, in
    their order, all with a hazard or none. warm_up: a few rows[n >= 1] and as_of[n], real or made up, that are
    played at load. version: default one above the latest. attach: called with the unpublished folder, to add a
    model card and plots; they are checksummed like the rest. key: signs the manifest.

    Raises ModelUnwritable when it cannot be written or the version is there already.
    """
    home = directory / spec.name
    layout = Layout(spec)
    served = Served(layout, [Head(network, calibrator, forest, share, hazard), *further])
    staging = None
    try:
        home.mkdir(parents=True, exist_ok=True)
        number = version or max(versions(home), default=0) + 1
        # A dot and no digits: neither TF Serving nor `versions` takes it for a version.
        staging = Path(tempfile.mkdtemp(prefix=".publishing-", dir=home))
        # Nobody takes a gradient of what is served. TensorFlow would register those functions at each load, for the
        # life of the process: 24 MiB a version.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(served, str(staging), signatures=served.signatures(), options=options)
        warmup.write(staging, spec.name, layout, *warm_up)
        if attach is not None:
            attach(staging)
        manifest = Manifest(
            name=spec.name,
            version=number,
            **facts.model_dump(),
            layout_id=layout.id,
            horizon_ms=spec.horizon_ms,
            sizes=sizes,
            features=tuple(feature.name for feature in features(spec)),
            calibrator=calibrator,
            libraries={name: _library(name) for name in LIBRARIES},
            spec=dump_spec(spec),
            files={path: sha256_of(staging / path) for path in sorted(files_of(staging))},
        )
        text = manifest.model_dump_json(indent=2) + "\n"
        (staging / MANIFEST).write_text(text, encoding="utf-8")
        if key is not None:
            (staging / signature.SIGNATURE).write_text(signature.sign(text.encode(), key) + "\n")
        staging.chmod(0o755)
        _sync(staging)
        target = _appear(staging, home, number)
    except (OSError, tf.errors.OpError) as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        raise _unwritable(spec.name, home, error) from error
    return target


def push(version: Path, directory: Path, *, key: str | None = None) -> Path:
    """Publish a version that `export` has written elsewhere, as `directory/<name>/<the next version>`: the same bytes
    but for its number in the manifest. Returns that path; pushed again, it is the same. key: signs the manifest.

    Raises ModelError when it is not what was written, ModelUnwritable when it cannot be written.
    """
    manifest = verify(version)
    home, staging = directory / manifest.name, None
    try:
        home.mkdir(parents=True, exist_ok=True)
        latest = max(versions(home), default=0)
        if latest and read_manifest(home / str(latest)) == manifest.model_copy(update={"version": latest}):
            return home / str(latest)  # whoever pushed it was ended before it could say so
        number = latest + 1
        staging = Path(tempfile.mkdtemp(prefix=".publishing-", dir=home))
        shutil.copytree(version, staging, dirs_exist_ok=True)
        text = manifest.model_copy(update={"version": number}).model_dump_json(indent=2) + "\n"
        (staging / MANIFEST).write_text(text, encoding="utf-8")
        (staging / signature.SIGNATURE).unlink(missing_ok=True)
        if key is not None:
            (staging / signature.SIGNATURE).write_text(signature.sign(text.encode(), key) + "\n")
        staging.chmod(0o755)
        _sync(staging)
        return _appear(staging, home, number)
    except OSError as error:  # shutil.Error is one
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        raise _unwritable(manifest.name, home, error) from error


def _appear(staging: Path, home: Path, number: int) -> Path:
    """Whole or not at all. Raises OSError."""
    target = home / str(number)
    if target.exists():
        raise FileExistsError(f"version {number} is there already")
    staging.rename(target)
    sync(home)
    return target


def _unwritable(name: str, home: Path, error: Exception) -> ModelUnwritable:
    return ModelUnwritable(
        f"model {name} cannot be published in {home}: {error}",
        hint="free space or choose another --out; versions are never overwritten",
    )


def _library(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _sync(folder: Path) -> None:
    """Everything below `folder` is on disk before its name is: a power cut leaves no empty files behind."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
