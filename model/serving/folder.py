"""A model's folder: which of its subfolders are versions, and which one an operator has pinned.

    models/<name>/
        1/  2/  3/      versions: ascending integers, written as such (no leading zero, no other script's digits)
        pinned          a number and a newline, there or not: every worker serves that version and no other

    pinned by          what is served                                   back
    settings.model     the version whose folder it names, for ever      change the setting, restart
    the file           that version, from the next look on, all workers `ebbtide model unpin`
    nobody             the highest version that is good

It knows names and no TensorFlow. The invariant: the file `pinned` is there whole or not at all, and a folder whose name
only looks like a number is never taken for a version: it is named, so that somebody renames it.
"""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from ebbtide.model.errors import ModelDamaged, ModelMissing, ModelUnwritable

MANIFEST = "manifest.json"
PINNED = "pinned"
PINNED_BYTES_MAX = 32


class Listing(NamedTuple):
    """versions: ascending. misnamed: folders whose names look like numbers and are no versions' names."""

    versions: tuple[int, ...]
    misnamed: tuple[str, ...]


def listing(home: Path) -> Listing:
    """What is in a model's folder; nothing when there is no such folder. Raises OSError when it cannot be read."""
    if not home.is_dir():
        return Listing((), ())
    names = [path.name for path in home.iterdir() if path.name.isnumeric() and path.is_dir()]
    good = sorted(number for name in names if (number := version_of(name)) is not None)
    return Listing(tuple(good), tuple(sorted(name for name in names if version_of(name) is None)))


def versions(home: Path) -> list[int]:
    """Versions in a model's folder, ascending."""
    return list(listing(home).versions)


def version_of(name: str) -> int | None:
    """The version that a folder's name says, None when it says none: `0002`, `²` and `0` are no versions."""
    if not (name.isascii() and name.isdecimal()) or name.startswith("0"):
        return None
    return int(name)


def latest_version(home: Path) -> Path | None:
    """The folder of the highest version below a model's folder, or None."""
    found = versions(home)
    return home / str(found[-1]) if found else None


def is_version(path: Path) -> bool:
    """Whether `path` is a version's folder, and not one of versions."""
    return (path / MANIFEST).is_file() or (path.name.isnumeric() and path.is_dir())


def home_of(path: Path) -> Path:
    """The model's folder that `path` means: itself, or the one model in a folder of models. Raises ModelMissing."""
    if versions(path):
        return path
    models = [child for child in path.iterdir() if versions(child)] if path.is_dir() else []
    if len(models) == 1:
        return models[0]
    if models:
        names = ", ".join(sorted(model.name for model in models))
        raise ModelMissing(f"{path} holds several models: {names}", hint="name one of them")
    raise ModelMissing(f"no model at {path}", hint="make one with `ebbtide train`, or correct the path")


def locate(path: Path) -> Path:
    """The version's folder that `path` means: itself, or below a model's folder (or below the one model of a folder of
    models) the pinned version, else the latest. Raises ModelMissing, and ModelDamaged for a pin that says nothing."""
    if is_version(path):
        return path
    home = home_of(path)
    return home / str(pinned(home) or versions(home)[-1])


def pinned(home: Path) -> int | None:
    """The version that every worker is to serve, None when none is pinned.

    Raises ModelDamaged when the file says no version, OSError when it cannot be read.
    """
    try:
        with (home / PINNED).open("rb") as file:
            said = file.read(PINNED_BYTES_MAX).strip()
    except FileNotFoundError:
        return None
    number = version_of(said.decode("ascii", "replace"))
    if number is None:
        raise ModelDamaged(
            f"the file {home / PINNED} names no version",
            hint=f"`ebbtide model pin {home}/VERSION`, or `ebbtide model unpin {home}`",
        )
    return number


def pin(home: Path, version: int) -> None:
    """Have every worker serve that version, from its next look on. Raises ModelUnwritable."""
    try:
        handle, name = tempfile.mkstemp(prefix=".pinning-", dir=home)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(f"{version}\n")
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            Path(name).rename(home / PINNED)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
        sync(home)
    except OSError as error:
        raise _unwritable(home, error) from error


def unpin(home: Path) -> bool:
    """Have workers serve the highest good version again. Returns whether one was pinned. Raises ModelUnwritable."""
    try:
        (home / PINNED).unlink()
        sync(home)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unwritable(home, error) from error
    return True


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(home: Path, error: OSError) -> ModelUnwritable:
    return ModelUnwritable(
        f"{home / PINNED} cannot be written: {error.strerror or error}",
        hint="pin where the folder of models is writable; workers only read it",
    )
