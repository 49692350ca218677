"""Where compiled programs outlive a process: a folder that TensorFlow's persistent XLA cache may use.

    <root>/tf2.21.0-x86_64-1f0c…/xla_compile_cache__<program>__<signature>__XLA_CPU_JIT.pb        0.6 MB a program
           │         │      └ hash of the processor's model and features: machine code is for one kind
           │         └ of the machine
           └ TensorFlow's version

A program's own name in there is a hash of what XLA compiles, made by TensorFlow, which also compares it as it reads; so
models share a folder and never a program. The files are machine code that we run: the folder is ours alone (0700, our
own), or it is not used. It never lies in a version's folder, which is copied around and never changes.

It knows folders and no TensorFlow. What goes wrong costs seconds at the next start, never a start.
"""

import contextlib
import hashlib
import logging
import os
import platform
import stat
from importlib import metadata
from pathlib import Path

log = logging.getLogger(__name__)

FILES_MAX = 200
"""A version needs five programs if its graph is new: 40 graphs, 120 MB. The oldest go."""


def prepare(root: Path) -> Path | None:
    """A folder below `root` for this machine and TensorFlow, made and checked; None, with a warning, when there can be
    none that is ours alone."""
    folder = folder_of(root)
    try:
        if any(character.isspace() for character in str(folder.resolve())):
            raise OSError("TensorFlow takes no path with a space in it")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for each in (root, folder):
            _check_ours(each)
        _prune(root)
    except OSError as error:
        told = {"folder": str(folder), "error": str(error)}
        log.warning("compiled programs are not kept: each start compiles them anew", extra=told)
        return None
    return folder


def folder_of(root: Path) -> Path:
    """The folder below `root` that is for this machine and TensorFlow."""
    return root / f"tf{_version()}-{platform.machine()}-{_processor()}"


def clear(folder: Path) -> int:
    """Forget what was compiled. Returns how many programs were there.

    TensorFlow fails for a program that it reads in part (a full disk, a power cut), each time anew."""
    gone = 0
    for path in folder.glob("xla_compile_cache__*"):
        with contextlib.suppress(OSError):
            path.unlink()
            gone += 1
    return gone


def _check_ours(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{folder} is no folder")
    if found.st_uid != os.geteuid():
        raise OSError(f"{folder} belongs to user {found.st_uid}, not to us")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise OSError(f"{folder} is open to others: chmod 700")


def _prune(root: Path) -> None:
    """Keep the newest FILES_MAX programs, of all machines and versions."""
    ages = [(path.stat().st_mtime_ns, path) for path in root.glob("*/xla_compile_cache__*")]
    for _, path in sorted(ages, reverse=True)[FILES_MAX:]:
        path.unlink(missing_ok=True)


def _version() -> str:
    try:
        return metadata.version("tensorflow")
    except metadata.PackageNotFoundError:  # another distribution of it, such as tensorflow-cpu
        return "unknown"


def _processor() -> str:
    """What machine code depends on: the processor's model and features, as Linux tells them."""
    told = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        told = "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return hashlib.sha256(told.encode()).hexdigest()[:12]
