"""Who only asks, lists or shows does not wait for TensorFlow: seconds and a GiB that the command has no use for."""

import subprocess
import sys
from pathlib import Path

import pytest

from ebbtide.model.serving.folder import pinned
from tests.support.seams.models import TINY, publish

PROBE = """
import sys
from ebbtide.ops.cli import run
code = run(sys.argv[1:])
print("loaded", code, *sorted({"tensorflow", "keras"} & sys.modules.keys()))
"""
SPEC = str(Path(__file__).parents[2] / "ops" / "specs" / "demo.yaml")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("models"), spec=TINY, sizes=(8,)).parent


def asked(*arguments: str) -> tuple[str, str]:
    """What the command printed, and its exit code with the heavy modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False
    )
    *said, loaded = done.stdout.splitlines() or [done.stderr]
    return "\n".join(said), loaded


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",), ("spec", "--help"), ("spec", "layout", "--spec", SPEC), ("at-risk", "--help"),
        ("customers", "--help"), ("customer", "--help"),
        ("alert", "replay", "--help"), ("dlq", "--help"), ("dlq", "list", "--help"),
        ("config", "show"), ("model", "--help"), ("worker", "--help"), ("schema", "event"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_command_that_only_shows_loads_no_tensorflow(arguments: tuple[str, ...]) -> None:
    said, loaded = asked(*arguments)
    assert loaded == "loaded 0", said


def test_a_model_is_shown_pinned_and_signed_without_tensorflow(home: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model_key: secret\n")
    key = ("--config", str(config))
    assert asked("model", "show", str(home))[1] == "loaded 0"
    assert asked("model", "show", str(home), *key)[1] == "loaded 1", "it is not signed"
    assert asked("model", "pin", str(home / "1"), *key)[1] == "loaded 1"
    assert asked("model", "sign", str(home / "1"), *key)[1] == "loaded 0"
    assert asked("model", "show", str(home), *key)[1] == "loaded 0"
    assert asked("model", "pin", str(home / "1"), *key)[1] == "loaded 0"
    assert pinned(home) == 1
    assert "version 1" in asked("model", "show", str(home))[0]
    assert asked("model", "unpin", str(home))[1] == "loaded 0"
    assert pinned(home) is None
    assert asked("model", "pin", str(home / "7"))[1] == "loaded 1"
    assert asked("model", "sign", str(home / "1"))[1] == "loaded 1", "there is no key"
