"""The environment of the service whose pins meet ours: a virtual environment under runs/, made on first use.

TensorFlow, NumPy and orjson are there in our versions, so that the services differ in what they are and not in what
they call. Made anew when what is wanted changes.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from ebbtide.ops.console import Steps

FOLDER = Path("runs") / "bench-quix"
QUIX = "quixstreams==3.28.1"
SHARED = ("tensorflow", "numpy", "orjson")


def quix_python(say: Steps) -> Path:
    """Its interpreter. Raises RuntimeError, with pip's words, when the environment cannot be made."""
    wanted = [QUIX, *(f"{name}=={version(name)}" for name in SHARED)]
    stamp, python = FOLDER / "installed", FOLDER / "bin" / "python"
    text = "\n".join([sys.version, *wanted])
    if python.exists() and stamp.exists() and stamp.read_text() == text:
        return python.absolute()
    say(f"making an environment for {QUIX} in {FOLDER} (once: TensorFlow is 600 MB)")
    _run(sys.executable, "-m", "venv", "--clear", str(FOLDER))
    _run(str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *wanted)
    stamp.write_text(text)
    return python.absolute()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"cannot make the environment of Quix Streams (--only leaves it out):\n{done.stderr[-4000:]}"
        )
