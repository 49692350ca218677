"""The built wheel: one import name, all of its files, and nobody's `model.py` in the way."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SPEC = Path(__file__).resolve().parents[2] / "ops" / "specs" / "demo.yaml"
ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "raise ImportError('a user has a module of this name')\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
        timeout=250,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_owns_one_import_name_and_holds_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"ebbtide"}
    tracked = subprocess.run(
        ["git", "ls-files", "featurestore", "model", "stream", "ops"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    wanted = {
        f"ebbtide/{name}" for name in tracked if not name.endswith((".md", ".png", ".webp"))
    }  # documents
    assert wanted - set(names) == set()
    assert "ebbtide/py.typed" in names


def test_installed_it_works_beside_modules_of_our_folders_names(wheel: Path, tmp_path: Path) -> None:
    """In somebody's project that has a model.py, an ops.py and a stream.py of its own."""
    site, project = tmp_path / "site", tmp_path / "project"
    project.mkdir()
    for name in ("model", "ops", "stream", "featurestore"):
        (project / f"{name}.py").write_text(HOSTILE)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {**os.environ, "PYTHONPATH": str(site)}
    code = "import ebbtide, ebbtide.stream.pipeline, ebbtide.ops.cli; print(ebbtide.__file__)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, timeout=120, check=False
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).is_relative_to(site)
    ran = subprocess.run(
        [sys.executable, "-m", "ebbtide.ops.cli", "spec", "layout", "--spec", str(SPEC)],
        cwd=project, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
