"""Compiled programs are kept in a folder that is ours alone; the next start finds them there, or compiles anew."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ebbtide.model.serving import xla_cache
from ebbtide.ops.config.child import child_environment
from tests.support.seams.models import TINY, publish

START = """
import sys
from pathlib import Path
from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.serving import runtime
from ebbtide.ops.config.child import keep_compiled
from ebbtide.ops.config.policy import PolicySettings
keep_compiled(Path(sys.argv[2]))
runtime.configure()
from ebbtide.ops.worker.compose import policy_of
from ebbtide.model.serving.slot import ScorerSlot
from tests.support.seams.models import TINY, sample
slot = ScorerSlot(Path(sys.argv[1]), Layout(TINY), lambda manifest: policy_of(manifest, PolicySettings()),
    compiled=Path(sys.argv[2]))
slot.widen()
few = sample(8, spec=TINY)
print(slot.current.model.score(few.rows, few.as_of).tobytes().hex())
"""


def start(model: Path, folder: Path, hash_seed: int) -> str:
    """Load as a worker does, in a process of its own, whose sets have another order. Returns scores, in hex."""
    command = [sys.executable, "-c", START, str(model), str(folder)]
    env = {**child_environment(), "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(900)  # four processes that import TensorFlow, two of which compile
def test_the_next_start_finds_what_was_compiled(tmp_path: Path) -> None:
    publish(tmp_path / "models", spec=TINY, sizes=(64,))  # in two blocks, so that outputs are put together
    home, root = tmp_path / "models" / TINY.name, tmp_path / "kept"
    folder = xla_cache.prepare(root)
    assert folder is not None
    scores = start(home, folder, 1)
    first = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(first) == 2  # score and explain
    for hash_seed in (2, 3):
        assert start(home, folder, hash_seed) == scores
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == first, (
            "nothing was compiled anew"
        )
    for path in first:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert start(home, folder, 4) == scores
    assert not [name for name in home.rglob("*") if "xla" in name.name], "nothing is kept in a version"


def test_the_folder_is_ours_alone_or_it_is_not_used(tmp_path: Path) -> None:
    root = tmp_path / "kept"
    folder = xla_cache.prepare(root)
    assert folder is not None
    assert (root.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o700, 0o700)
    assert xla_cache.prepare(root) == folder
    folder.chmod(0o770)
    assert xla_cache.prepare(root) is None
    folder.chmod(0o700)
    root.chmod(0o755)
    assert xla_cache.prepare(root) is None
    root.chmod(0o700)
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    assert xla_cache.prepare(root) is None
    assert xla_cache.prepare(tmp_path / "with space") is None
    (tmp_path / "file").write_text("")
    assert xla_cache.prepare(tmp_path / "file") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_somebody_elses_folder_is_not_used(tmp_path: Path) -> None:
    root = tmp_path / "kept"
    root.mkdir(0o700)
    shutil.chown(root, 65534)
    assert xla_cache.prepare(root) is None


def test_the_oldest_programs_go(tmp_path: Path) -> None:
    folder = xla_cache.prepare(tmp_path / "kept")
    assert folder is not None
    for n in range(xla_cache.FILES_MAX + 5):
        path = folder / f"xla_compile_cache__{n}.pb"
        path.write_bytes(b"")
        os.utime(path, (n, n))
    assert xla_cache.prepare(tmp_path / "kept") == folder
    kept = {int(path.stem.rpartition("_")[2]) for path in folder.iterdir()}
    assert kept == set(range(5, xla_cache.FILES_MAX + 5))
    xla_cache.clear(folder)
    assert not list(folder.iterdir())
