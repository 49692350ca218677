"""The command line from outside: whatever is wrong, one line that says what to do, and an exit code that is not 0."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.cli import COMMANDS
from ebbtide.ops.config.settings import DEFAULT_SPEC
from ebbtide.ops.stack.local import LocalValkey
from tests.support.seams.models import SPEC, publish
from tests.support.servers.services import Services

NOWHERE = "127.0.0.1:9"
"""The discard port: nobody listens there."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ebbtide.ops.cli", *arguments]


def environment(**settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EBBTIDE_")}
    return {**inherited, **{f"EBBTIDE_{name}": value for name, value in settings.items()}}


def run(
    arguments: Sequence[str], settings: Mapping[str, str], stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(**settings), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        stdout=stdout, text=True, timeout=200, check=False,
    )  # fmt: skip


def ebbtide(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return run(arguments, settings)


def refusal(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one line that says what is wrong; no trace, no colour."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code, done.stderr
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr
    return errors[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for the default spec, of random weights."""
    return publish(tmp_path_factory.mktemp("models"), spec=load_spec(DEFAULT_SPEC), sizes=(8,)).parent


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log too short to learn from."""
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    path.write_text('{"user_id":"a","type":"page_view","ts":1700000000000}\n')
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_is_for(name: str) -> None:
    done = ebbtide(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: ebbtide {name}") and "--debug" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["stack", "up", "--help"], ["spec", "layout", "--spec", str(DEFAULT_SPEC)]]
)
def test_what_needs_no_model_does_not_load_tensorflow(arguments: list[str]) -> None:
    code = f"import sys; from ebbtide.ops.cli import run; run({arguments!r}); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_worker_serves_without_keras_and_a_training_has_it() -> None:
    code = (
        "import sys; from ebbtide.ops.tensorflow import load_tensorflow; load_tensorflow()\n"
        "import ebbtide.ops.worker.run\n"
        "assert 'tensorflow' in sys.modules and 'keras' not in sys.modules\n"
        "import ebbtide.model.training.train, keras, tensorflow\n"
        "assert tensorflow.keras.layers.Dense is keras.layers.Dense"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wrong_call_exits_with_2_and_names_its_help() -> None:
    assert "ebbtide --help" in refusal(ebbtide("wroker"), 2)
    assert "ebbtide train --help" in refusal(ebbtide("train", "--spec", "x"), 2)
    assert "not a duration" in refusal(
        ebbtide("train", "--spec", "x", "--events", "x", "--out", "x", "--horizon", "soon"), 2
    )
    assert ebbtide("dlq").returncode == 2


def test_settings_that_do_not_fit_are_all_named() -> None:
    said = refusal(ebbtide("config", "show", HTTP__PORT="x", LOGS__FORM="y"))
    assert "http.port" in said and "logs.form" in said


@pytest.mark.parametrize(
    "arguments", [["adopt", "--yes"], ["forget", "ann"], ["rebuild", "--prefix", "new:"]]
)
@pytest.mark.parametrize("given", [{}, {"REDIS_URL": "redis://127.0.0.1:9/0"}, {"KAFKA_URL": NOWHERE}])
def test_who_works_on_a_state_needs_both_servers(arguments: list[str], given: dict[str, str]) -> None:
    said = refusal(ebbtide(*arguments, **given))
    assert "none is configured" in said and "EBBTIDE_KAFKA_URL and EBBTIDE_REDIS_URL" in said


def test_what_is_shown_of_the_settings_holds_no_secret() -> None:
    done = ebbtide("config", "show", REDIS_URL="redis://h:1/0", REDIS__PASSWORD="hunter2")
    assert done.returncode == 0
    assert "hunter2" not in done.stdout and "***" in done.stdout and "redis://h:1/0" in done.stdout
    said = refusal(ebbtide("config", "show", REDIS_URL="redis://:hunter2@h:1/0"))
    assert "redis.password" in said and "hunter2" not in said


def test_schemas_are_json() -> None:
    for arguments in (["event"], ["event", "--spec", str(DEFAULT_SPEC)], ["alert"]):
        assert json.loads(ebbtide("schema", *arguments).stdout)["type"] == "object"


def test_a_table_in_a_file_is_plain_text(tmp_path: Path) -> None:
    done = ebbtide(
        "spec", "layout", "--spec", str(DEFAULT_SPEC), "--json", str(tmp_path / "deep" / "layout.json")
    )
    assert done.returncode == 0 and "\x1b" not in done.stdout
    found = json.loads((tmp_path / "deep" / "layout.json").read_text())
    assert found["bytes"] == sum(field["bytes"] for field in found["fields"])
    assert f"{found['bytes']} bytes a customer" in done.stdout


def test_a_missing_or_broken_spec_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(ebbtide("spec", "layout", "--spec", "missing.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\n")
    said = refusal(ebbtide("spec", "layout", "--spec", str(broken)))
    assert "horizon" in said and "kinds" in said


def test_a_log_that_does_not_fit_is_described_and_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"user_id":"a","type":"page_veiw","ts":1700000000000}\n')
    done = ebbtide("spec", "check", "--spec", str(DEFAULT_SPEC), "--events", str(log))
    assert done.returncode == 1
    assert "page_veiw" in done.stdout and "page_view" in done.stdout


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    """Where the result goes, and where the figures go."""
    assert "no space left" in refusal(
        ebbtide("spec", "layout", "--spec", str(DEFAULT_SPEC), "--json", "/dev/full")
    )
    with Path("/dev/full").open("w") as full:
        assert "no space left" in refusal(run(["schema", "alert"], {}, full.fileno()))


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    first = subprocess.Popen(command("schema", "alert"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert first.stdout is not None
    first.stdout.close()
    _, errors = first.communicate(timeout=60)
    assert b"Traceback" not in errors and b"error" not in errors


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, events: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "models"
    said = refusal(ebbtide("train", "--events", str(events), "--spec", str(DEFAULT_SPEC), "--out", str(out)))
    assert str(tmp_path / "file") in said


def test_a_log_that_is_too_short_to_learn_from_is_refused(events: Path, tmp_path: Path) -> None:
    done = ebbtide("train", "--events", str(events), "--spec", str(DEFAULT_SPEC), "--out", str(tmp_path))
    assert "log" in refusal(done) or "history" in refusal(done)
    assert "No such file" in refusal(
        ebbtide("train", "--events", "missing.csv", "--spec", str(DEFAULT_SPEC), "--out", str(tmp_path))
    )


def test_ctrl_c_ends_a_command_with_130(events: Path, tmp_path: Path) -> None:
    train = command("train", "--events", str(events), "--spec", str(DEFAULT_SPEC), "--out", str(tmp_path))
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job's children would ignore it
    running = subprocess.Popen(train, stderr=subprocess.PIPE, text=True, env=environment())
    signal.signal(signal.SIGINT, before)
    assert running.stderr is not None
    assert "loading" in running.stderr.readline()
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "error: stopped by Ctrl-C" in errors and "Traceback" not in errors


@pytest.mark.kafka
@pytest.mark.redis
class TestServers:
    """What a worker says when something it needs is not there."""

    def test_no_model(self, stack: Services, tmp_path: Path) -> None:
        done = ebbtide(
            "worker", "--model", str(tmp_path), KAFKA_URL=stack.kafka_url, REDIS_URL=stack.redis_url
        )
        said = refusal(done)
        assert str(tmp_path) in said and "ebbtide train" in said

    def test_a_model_of_another_spec(self, stack: Services, tmp_path: Path) -> None:
        foreign = publish(tmp_path, spec=SPEC, sizes=(8,))
        done = ebbtide(
            "worker", "--model", str(foreign), KAFKA_URL=stack.kafka_url, REDIS_URL=stack.redis_url
        )
        said = refusal(done)
        assert "corner_shop/1" in said and "layout" in said

    def test_no_broker(self, model: Path, stack: Services) -> None:
        said = refusal(ebbtide("worker", "--model", str(model), KAFKA_URL=NOWHERE, REDIS_URL=stack.redis_url))
        assert NOWHERE in said and "EBBTIDE_KAFKA_URL" in said
        assert NOWHERE in refusal(ebbtide("dlq", "list", KAFKA_URL=NOWHERE))
        assert "EBBTIDE_KAFKA_URL" in refusal(ebbtide("dlq", "replay"))

    def test_no_redis(self, model: Path, stack: Services) -> None:
        done = ebbtide(
            "worker", "--model", str(model), KAFKA_URL=stack.kafka_url, REDIS_URL=f"redis://{NOWHERE}/0"
        )
        assert NOWHERE in refusal(done)

    def test_a_wrong_password(self, model: Path, stack: Services) -> None:
        with LocalValkey(password="right") as valkey:
            url = valkey.url.replace("right", "wrong")
            said = refusal(ebbtide("worker", "--model", str(model), KAFKA_URL=stack.kafka_url, REDIS_URL=url))
        assert "password" in said.lower() and "wrong@" not in said

    def test_too_few_partitions(self, model: Path, stack: Services, unique_name: str) -> None:
        settings = {"KAFKA_URL": stack.kafka_url, "REDIS_URL": stack.redis_url, "KAFKA__TOPIC": unique_name}
        settings |= {"TOPICS__ALERTS": f"{unique_name}-a", "TOPICS__DEAD_LETTERS": f"{unique_name}-d"}
        assert ebbtide("dlq", "list", **settings).returncode == 1  # no such topic yet
        first = subprocess.Popen(
            command("worker", "--model", str(model), "--port", "0"), stderr=subprocess.PIPE, text=True,
            env=environment(**settings, TOPICS__PARTITIONS="2"),
        )  # fmt: skip
        assert first.stderr is not None
        said = ""
        while "partition opened" not in (line := first.stderr.readline()):
            said += line
            assert line, f"the worker ended before it was ready: {said}"
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
        assert first.returncode == 0
        said = refusal(ebbtide("worker", "--model", str(model), **settings, TOPICS__PARTITIONS="4"))
        assert "2 partitions" in said and "topics.partitions" in said

    def test_a_port_that_is_taken(self, model: Path, stack: Services, unique_name: str) -> None:
        port = stack.redis_url.rsplit(":", 1)[1].split("/")[0]
        settings = {"KAFKA_URL": stack.kafka_url, "REDIS_URL": stack.redis_url, "KAFKA__TOPIC": unique_name}
        settings |= {"TOPICS__ALERTS": f"{unique_name}-a", "TOPICS__DEAD_LETTERS": f"{unique_name}-d"}
        said = refusal(ebbtide("worker", "--model", str(model), "--port", port, **settings))
        assert port in said and "EBBTIDE_HTTP__PORT" in said

    def test_a_stack_for_other_commands(self) -> None:
        """`ebbtide stack up > file`, then the file is sourced; Ctrl-C ends it."""
        running = subprocess.Popen(
            command("stack", "up"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )  # fmt: skip
        assert running.stdout is not None
        lines = [running.stdout.readline() for _ in range(3)]
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
        assert running.returncode == 0, errors
        assert lines[0].startswith("export EBBTIDE_KAFKA_URL=127.0.0.1:")
        assert lines[1].startswith("export EBBTIDE_REDIS_URL=redis://127.0.0.1:")
        assert lines[2].startswith("#")
