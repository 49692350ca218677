"""Take out of a virtual environment what a worker never opens: `python slim.py DIR` while the image is built.

Headers, static libraries, a compiler's bindings, tests of others, type stubs, pip. Licences and metadata stay: they
are owed, and the list of what is inside is made of them. It stands alone, for a stage that has nothing installed.
"""

import shutil
import sys
from pathlib import Path

FOLDERS = (
    "tensorflow/include",
    "numpy/_core/include",
    "numba/tests",
    "numba/cuda/tests",
    "h5py/tests",
    "pip",
)
NAMES = {"__pycache__", "tests"}
KEPT_TESTS = ("tensorflow", "keras")
"""Their modules import folders of this name."""
SUFFIXES = {".pyi", ".pxd", ".h", ".hpp", ".a", ".c", ".cpp", ".pyx"}


def slim(environment: Path) -> int:
    """Returns how many bytes went."""
    before = size(environment)
    for site in environment.glob("lib/python3*/site-packages"):
        for name in FOLDERS:
            shutil.rmtree(site / name, ignore_errors=True)
        for left in site.glob("pip-*.dist-info"):
            shutil.rmtree(left)
        for folder in [f for f in site.rglob("*") if f.is_dir() and f.name in NAMES]:
            if folder.name == "__pycache__" or folder.relative_to(site).parts[0] not in KEPT_TESTS:
                shutil.rmtree(folder, ignore_errors=True)
        for file in site.rglob("*"):
            if file.suffix in SUFFIXES and file.is_file():
                file.unlink()
    return before - size(environment)


def size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


if __name__ == "__main__":
    root = Path(sys.argv[1])
    print(f"{slim(root):,} bytes removed, {size(root):,} left")
