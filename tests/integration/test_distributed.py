"""The same training over several devices and processes: real ones, against one process."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.examples.dataset import History, draw
from ebbtide.model.examples.shards import write_shards
from ebbtide.model.fitting.distribute import steps_by_worker
from ebbtide.model.judging.metrics import log_loss
from ebbtide.ops.pipeline.cluster import run_cluster
from ebbtide.ops.pipeline.config import load_config
from ebbtide.ops.pipeline.run import Runner
from ebbtide.ops.pipeline.store import Store
from ebbtide.ops.pipeline.train import EXAMPLES
from ebbtide.stream.clock import SystemClock
from tests.integration.test_train import KNOWN_UNTIL, demo_spec, simulated
from tests.support.factory import TRAIN, write_config, write_events

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 2
BATCH = 128
ALL_ROWS = 1_000_000
"""A batch of all rows that there are: nothing is left to the order in which they are drawn."""
LIMIT_S = 200


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = demo_spec()
    folder = tmp_path_factory.mktemp("distributed") / "examples"
    write_shards(
        folder, draw(History(Layout(spec), simulated(demo_spec()), KNOWN_UNTIL), examples_max=3_000).usable()
    )
    return folder


def task(
    strategy: str,
    shards: Path,
    out: Path,
    dropout: float = 0.0,
    cluster: dict[str, Any] | None = None,
    batch: int = BATCH,
    prune: float = 0.0,
    more: Sequence[str] = (),
) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment |= {} if cluster is None else configured(cluster)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.distributed_main", strategy, str(shards), str(out), str(dropout),
         str(EPOCHS), str(batch), "-", str(prune), *more],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def configured(cluster: dict[str, Any]) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps(cluster)}


def member(cluster: dict[str, list[str]], job: str, index: int) -> dict[str, Any]:
    """TF_CONFIG of one task."""
    return {"cluster": cluster, "task": {"type": job, "index": index}}


def result(process: subprocess.Popen[str], out: Path) -> dict[str, Any]:
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said[-2_000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def addresses(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return found


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("alone") / "out.json"
    return result(task("alone", shards, out), out)


def assert_same(found: dict[str, Any], alone: dict[str, Any]) -> None:
    """Sums in another order: nothing else."""
    assert found["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    assert np.abs(np.array(found["logits"]) - np.array(alone["logits"])).max() < 1e-3


@pytest.mark.slow
def test_one_and_two_replicas_have_the_same_loss(shards: Path, tmp_path: Path) -> None:
    """One device is trained by Keras' `fit`, several by a step of our own: each row has its weight in both."""
    one, two = (
        result(task(name, shards, tmp_path / name, batch=ALL_ROWS), tmp_path / name)
        for name in ("one_device", "mirrored")
    )
    assert_same(two, one)


def test_mirrored_devices_compute_what_one_does(shards: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    assert_same(result(task("mirrored", shards, tmp_path / "out.json"), tmp_path / "out.json"), alone)


def test_two_workers_compute_what_one_does(shards: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    cluster = {"worker": addresses(2)}
    processes = [
        task("multi_worker", shards, tmp_path / f"{index}.json", 0.0, member(cluster, "worker", index))
        for index in (0, 1)
    ]  # fmt: skip
    try:
        found = result(processes[0], tmp_path / "0.json")
        processes[1].communicate(timeout=30)
    finally:
        for process in processes:
            process.kill()
    assert_same(found, alone)
    assert not (tmp_path / "1.json").exists(), "the first worker alone writes"


@contextmanager
def served_cluster(
    shards: Path, out: Path, prune: float = 0.0, *more: str
) -> Iterator[subprocess.Popen[str]]:
    """The coordinator, beside two workers and a parameter server."""
    chief, *workers, keeper = addresses(4)
    cluster = {"chief": [chief], "worker": workers, "ps": [keeper]}
    tasks = [("worker", 0), ("worker", 1), ("ps", 0), ("chief", 0)]
    processes = [
        task("parameter_server", shards, out, 0.0, member(cluster, job, at), prune=prune, more=more)
        for job, at in tasks
    ]
    try:
        yield processes[-1]
    finally:
        for process in processes:
            process.kill()


def parameter_served(shards: Path, out: Path, prune: float = 0.0) -> dict[str, Any]:
    with served_cluster(shards, out, prune) as coordinator:
        return result(coordinator, out)


def test_a_parameter_server_learns_as_well(shards: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    """Asynchronous: other numbers each time, so what is asked is how well it does on rows it has not seen, and that
    both workers took their part of as many rows."""
    found = parameter_served(shards, tmp_path / "out.json")
    spec = demo_spec()
    rows = draw(History(Layout(spec), simulated(demo_spec()), KNOWN_UNTIL), examples_max=3_000).usable()
    later = rows.take(rows.customer % 2 == 1)
    lost = [
        log_loss(1 / (1 + np.exp(-np.array(of["logits"]))), later.churned, later.weights())
        for of in (found, alone)
    ]
    assert lost[0] == pytest.approx(lost[1], abs=0.01)
    rate = np.average(later.churned, weights=later.weights())
    knows_nothing = log_loss(np.full(len(later), rate), later.churned, later.weights())
    assert lost[0] < knows_nothing - 0.05, "it has learned"
    # An epoch's own loss wanders by a few hundredths: which weights a step sees is the other worker's affair.
    assert len(found["loss"]) == EPOCHS and found["loss"] == pytest.approx(alone["loss"], abs=0.05)
    steps = (len(rows) - len(later)) // BATCH * EPOCHS
    assert alone["taken"] == [steps * BATCH]
    assert sum(found["taken"]) == steps * BATCH, "each step that was asked for, once"
    assert len(found["taken"]) == 2 and min(found["taken"]) >= BATCH, "no worker stood aside"


@pytest.mark.slow
def test_replicas_prune_a_streamed_network_alike(shards: Path, tmp_path: Path) -> None:
    """Of shards, under masks: several replicas come to what one does. Asynchronous ones, of rows in memory, to as many
    zeros."""
    whole = {
        name: result(task(name, shards, tmp_path / name, prune=0.5), tmp_path / name)
        for name in ("alone", "mirrored")
    }
    assert_same(whole["mirrored"], whole["alone"])
    apart = parameter_served(shards, tmp_path / "apart", prune=0.5)
    for found in (*whole.values(), apart):
        assert len(found["loss"]) == EPOCHS
        assert len(found["zeros"]) == 3 and all(0.49 < share < 0.52 for share in found["zeros"])
        assert sum(found["taken"]) == whole["alone"]["taken"][0], "the epoch under masks among them"


def test_no_stream_goes_over_a_parameter_server(shards: Path, tmp_path: Path) -> None:
    """Its workers cannot read the coordinator's files: said before a step is taken, with what to take instead."""
    with served_cluster(shards, tmp_path / "out.json", 0.5, "stream") as coordinator:
        _, said = coordinator.communicate(timeout=LIMIT_S)
    assert coordinator.returncode == 1 and not (tmp_path / "out.json").exists()
    last = said.strip().splitlines()[-1]
    assert "ClusterUnfit" in last and "cannot read shards" in last and "multi_worker" in last, last


def test_workers_steps_are_told_from_their_numbers() -> None:
    assert steps_by_worker([]) == []
    assert steps_by_worker([2, 0, 1]) == [3]
    assert steps_by_worker([0, 0, 1, 2, 0, 1]) == [3, 2, 1]


def test_dropout_over_devices_learns_as_well(shards: Path, tmp_path: Path) -> None:
    """Each replica draws its own: the curves are near, not the same."""
    one = task("alone", shards, tmp_path / "one.json", 0.3)
    two = task("mirrored", shards, tmp_path / "two.json", 0.3)
    a, b = result(one, tmp_path / "one.json"), result(two, tmp_path / "two.json")
    assert b["loss"] == pytest.approx(a["loss"], abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pipelines_trainer_runs_on_two_workers(tmp_path: Path) -> None:
    """The stages before it on one machine, the trainer on two at once: the recipe that one worker finds by the same
    steps, its loss within a thousandth; the first one keeps the artifact."""
    write_events(tmp_path / "events")
    train = {**TRAIN, "network": {**TRAIN["network"], "dropout": 0.0}}
    made = {}
    for workers in (1, 2):
        file = write_config(tmp_path, runs=f"workers-{workers}", train={**train, "strategy": "multi_worker"})
        config = load_config(file)
        run = Runner(Store(config.runs), config.plan(), SystemClock())
        run.run(EXAMPLES)
        cluster = {"worker": addresses(workers)}
        command = [
            sys.executable,
            "-m",
            "ebbtide.ops.cli",
            "pipeline",
            "stage",
            "trainer",
            "--config",
            str(file),
        ]
        processes = [
            subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **configured(member(cluster, "worker", at))},
            )
            for at in range(workers)
        ]  # fmt: skip
        try:
            for process in processes:
                _, said = process.communicate(timeout=280)
                assert process.returncode == 0, said[-2_000:]
        finally:
            for process in processes:
                process.kill()
        run.look()
        made[workers] = run.value("trainer").found.recipe
    one, two = made.values()
    assert (one.epochs, one.share) == (two.epochs, two.share)
    assert two.log_loss == pytest.approx(one.log_loss, abs=1e-3)


@pytest.mark.parametrize(
    ("strategy", "cluster", "words"),
    [
        ("tpu", None, "there is no TPU here"),
        ("multi_worker", None, "TF_CONFIG names no worker"),
        (
            "multi_worker",
            {"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 3}},
            "is it stale",
        ),
        (
            "parameter_server",
            {"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 0}},
            "no chief",
        ),
    ],
    ids=["tpu", "nothing", "stale", "no chief"],
)
def test_a_cluster_that_does_not_fit_is_named(
    shards: Path, tmp_path: Path, strategy: str, cluster: dict[str, Any] | None, words: str
) -> None:
    process = task(strategy, shards, tmp_path / "out.json", 0.0, cluster)
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    last = said.strip().splitlines()[-1]
    assert "ClusterUnfit" in last and words in last and "(" in last, last


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_killed_worker_restarts_the_cluster(shards: Path, tmp_path: Path) -> None:
    """Killed after an epoch, all begin again and go on there: the undisturbed run's curve and end."""
    epochs, backup = 4, tmp_path / "backup"

    def arguments(out: Path, *more: str) -> list[str]:
        given = ["multi_worker", str(shards), str(out), "0.0", str(epochs), str(BATCH), *more]
        return [sys.executable, "-m", "tests.integration.distributed_main", *given]

    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    starts, said = [], list[str]()

    def kill_one(processes: Sequence[subprocess.Popen[bytes]]) -> None:
        starts.append([process.pid for process in processes])
        if len(starts) > 1:
            return
        deadline = time.monotonic() + LIMIT_S
        while not list(backup.glob("*.npz")):
            assert time.monotonic() < deadline, "no epoch was kept"
            time.sleep(0.02)
        processes[1].kill()

    assert run_cluster(arguments(tmp_path / "alone.json"), 1, environment, said.append) == 0
    code = run_cluster(
        arguments(tmp_path / "two.json", str(backup)), 2, environment, said.append, started=kill_one
    )
    assert (code, len(starts), len(said)) == (0, 2, 1)
    assert "signal 9" in said[0]
    (kept,) = backup.glob("*.npz")
    with np.load(kept) as last:
        assert len(last["loss"]) == epochs and last["over"]
    found, alone = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "alone"))
    assert_same(found, alone)


def test_a_cluster_that_fails_by_itself_is_not_started_again(tmp_path: Path) -> None:
    """It would fail again. One that is killed each time is given up."""
    starts: list[int] = []
    fails = [sys.executable, "-c", "import sys; sys.exit(3)"]
    assert run_cluster(fails, 2, os.environ, print, started=lambda all_of: starts.append(len(all_of))) == 3
    assert starts == [2]
    dies = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert run_cluster(dies, 2, os.environ, print, started=lambda all_of: starts.append(len(all_of))) == -9
    assert starts == [2, 2, 2, 2, 2]
