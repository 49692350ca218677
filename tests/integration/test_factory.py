"""The factory's whole line on real files: the model of `train_model`, artifacts that stand alone, what goes wrong."""

import asyncio
import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from aiokafka import AIOKafkaProducer

from ebbtide.featurestore.events.parse import ParseLimits
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import iso_ms
from ebbtide.model.errors import ModelUnwritable
from ebbtide.model.examples.made_up import made_up
from ebbtide.model.factory.line import BY_NAME, STAGES
from ebbtide.model.factory.values import write_value
from ebbtide.model.judging.gate import Refusal
from ebbtide.model.serving.artifact import push
from ebbtide.model.serving.folder import versions
from ebbtide.model.serving.manifest import read_manifest
from ebbtide.model.serving.scorer import Scorer
from ebbtide.model.training.train import train_model
from ebbtide.ops.errors import OpsError
from ebbtide.ops.pipeline.config import load_config
from ebbtide.ops.pipeline.run import NAMES, StageFailed
from ebbtide.ops.pipeline.skew import skew
from ebbtide.ops.pipeline.store import Store
from ebbtide.ops.pipeline.watch import watch
from ebbtide.stream.kafka.reader import log_ranges
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.support.factory import START, runner, write_config, write_events, write_spec
from tests.support.servers.services import Services

ROOT = Path(__file__).resolve().parents[2]
HEAD = "user_id,event_id,type,ts,value,properties.plan\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its first stage to its last."""
    folder = tmp_path_factory.mktemp("factory")
    write_events(folder / "events")
    assert runner(write_config(folder)).run()["outcome"] == "done"
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """A copy of its own, to break things in. The pusher's artifact names the copy's models."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    return tmp_path


def weights(path: Path) -> list[bytes]:
    """Every variable of a SavedModel, by name."""
    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    names = sorted(reader.get_variable_to_shape_map())
    return [name.encode() + np.asarray(reader.get_tensor(name)).tobytes() for name in names if name[0] != "_"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_line_is_train_model_with_stages(world: Path, tmp_path: Path) -> None:
    """The same weights, figures, thresholds and answers, whoever asks."""
    config = load_config(world / "pipeline.yaml")
    plan = config.plan()
    other = train_model(
        world / "events", plan.spec, tmp_path, created=datetime(2024, 5, 1, tzinfo=UTC),
        labels_until_ms=plan.labels_until_ms, config=plan.config, force=True,
    )  # fmt: skip
    ours = world / "models" / "shop" / "1"
    one, two = read_manifest(ours), read_manifest(other.path)
    same = {"created", "files"}
    assert one.model_dump(exclude=same) == two.model_dump(exclude=same)
    assert weights(ours) == weights(other.path)
    run = runner(world / "pipeline.yaml")
    run.look()
    report = json.loads((run.folder_of("refitter") / "report.json").read_text())
    assert report == json.loads(json.dumps(other.report.as_json()))
    rows, as_of = made_up(Layout(plan.spec))
    scored = [
        Scorer.load(path, Layout(plan.spec), whole=False).score(rows, as_of) for path in (ours, other.path)
    ]
    assert scored[0].tobytes() == scored[1].tobytes()


def test_a_second_run_makes_nothing(world: Path) -> None:
    began = time.monotonic()
    record = runner(world / "pipeline.yaml").run()
    assert record["outcome"] == "done" and all(of["reused"] for of in record["stages"].values())
    assert versions(world / "models" / "shop") == [1]
    assert time.monotonic() - began < 10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_read_back_gives_the_same_model(tmp_path: Path) -> None:
    """Two targets; the later stages from the artifacts of the earlier ones, by who has made none of them."""
    copy = tmp_path
    write_events(copy / "events")
    browse, buy = ["page_view", "search", "add_to_cart", "purchase"], ["purchase"]
    spec = write_spec(copy, {"name": "visit", "kinds": browse}, {"name": "purchase", "kinds": buy})
    assert runner(write_config(copy, spec=str(spec))).run()["outcome"] == "done"
    store = Store(copy / "runs")
    number = store.runs()[-1]
    made = store.read_run(number)["stages"]
    for name in NAMES[NAMES.index("refitter") :]:
        shutil.rmtree(copy / "runs" / "artifacts" / name)
    run = runner(copy / "pipeline.yaml")
    again = run.run()["stages"]
    assert again["evaluator"]["reused"] and not again["refitter"]["reused"]
    assert again["refitter"]["digest"] == made["refitter"]["digest"]
    assert weights(copy / "models/shop/2") == weights(copy / "models/shop/1")


def kill_in(stage: str, file: Path, runs: Path) -> None:
    """A process that runs this stage, ended by SIGKILL in the middle of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ebbtide.ops.cli", "pipeline", "run", "--config", str(file)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(runs.glob(f"artifacts/{stage}/.making-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", ["example_gen", "transform", "trainer", "infra_validator"])
def test_a_killed_run_goes_on_where_it_was(copy: Path, stage: str) -> None:
    store = Store(copy / "runs")
    whole = store.read_run(store.runs()[-1])["stages"]
    for name in NAMES[NAMES.index(stage) :]:
        shutil.rmtree(copy / "runs" / "artifacts" / name)
    shutil.rmtree(copy / "models")
    kill_in(stage, copy / "pipeline.yaml", copy / "runs")
    found = [path.name for path in (copy / "runs" / "artifacts" / stage).iterdir() if path.name[0] != "."]
    assert not found, "half an artifact is none"
    number = store.runs()[-1]
    record = runner(copy / "pipeline.yaml").run()
    assert record["outcome"] == "done" and record["run"] == number, "the run is gone on with"
    before = NAMES[: NAMES.index(stage)]
    assert {name: record["stages"][name]["key"] for name in before} == {
        name: whole[name]["key"] for name in before
    }
    until = NAMES[: NAMES.index("infra_validator")]
    assert {name: record["stages"][name]["digest"] for name in until} == {
        name: whole[name]["digest"] for name in until
    }
    assert versions(copy / "models" / "shop") == [1]


def test_a_failed_gate_leaves_the_old_version(copy: Path) -> None:
    """What speaks against a model is put into the evaluator's own artifact: nothing but the gate knows."""
    file = write_config(copy, force=False)
    run = runner(file)
    run.run(NAMES[: NAMES.index("evaluator") + 1])
    verdict, stage = run.value("evaluator"), BY_NAME["evaluator"]
    verdict.of["refusals"] = [Refusal("AUROC 0.61 against 0.75 of trees", "try something else")]
    key = run.key(stage)
    assert key is not None
    with run.store.staging("evaluator") as staging:
        write_value(staging, verdict, stage.carriers(run._work(stage, staging)))
        inputs = run.store.find("evaluator", key).inputs  # type: ignore[union-attr]  # it has just been made
        run.store.keep(staging, "evaluator", key, 0.0, inputs, {})
    again = runner(file)
    with pytest.raises(
        StageFailed, match=r"stage refitter: model shop is not published: AUROC 0\.61"
    ) as caught:
        again.run()
    assert "try something else" in caught.value.hint
    record = again.store.read_run(again.store.runs()[-1])
    assert record["outcome"] == "refused" and "of trees" in record["error"]
    assert versions(copy / "models" / "shop") == [1], "what is in service stays"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], check=False
    ).returncode:
        pytest.skip("may not mount here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_publishes_nothing(world: Path, tiny_disk: Path) -> None:
    with pytest.raises(ModelUnwritable, match="No space left") as caught:
        push(world / "models" / "shop" / "1", tiny_disk)
    assert "free space" in caught.value.hint
    assert not list((tiny_disk / "shop").iterdir()), "nothing half-published"


def test_a_full_disk_of_artifacts_names_its_stage(copy: Path, tiny_disk: Path) -> None:
    with pytest.raises(StageFailed, match=r"stage example_gen: .*No space left on device") as caught:
        runner(write_config(copy, runs=str(tiny_disk))).run(["example_gen"])
    assert "the next run goes on with this stage" in caught.value.hint
    assert not list(tiny_disk.glob("artifacts/*/*"))


def test_a_version_pushed_twice_is_there_once(copy: Path) -> None:
    """Ended between the version's appearance and its own artifact, a run pushes again."""
    shutil.rmtree(copy / "runs" / "artifacts" / "pusher")
    run = runner(copy / "pipeline.yaml")
    run.run()
    assert versions(copy / "models" / "shop") == [1]
    shutil.rmtree(copy / "models" / "shop")
    runner(copy / "pipeline.yaml").run()
    assert versions(copy / "models" / "shop") == [1], "removed by somebody, it is published again"


def test_one_class_alone_is_refused_by_its_stage(tmp_path: Path) -> None:
    """Customers who come every day: nobody ever churns."""
    rows = [
        f"u{c},e{c}-{d},page_view,{START + d * DAY_MS + c * 1000},," for d in range(75) for c in range(60)
    ]
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "all.csv").write_text(HEAD + "\n".join(rows) + "\n")
    run = runner(write_config(tmp_path))
    with pytest.raises(
        StageFailed, match=r"^stage trainer: the train slice has .* 0 of them churned"
    ) as caught:
        run.run()
    assert "longer log" in caught.value.hint
    assert not (tmp_path / "models" / "shop").exists()
    assert list(run.store.read_run(1)["stages"]) == list(NAMES[: NAMES.index("trainer")]), "done is done"


def test_what_the_schema_forbids_stops_the_line(copy: Path) -> None:
    schema = "kinds: {purchase: {required: true, fields: {purchase.value: {max: 10}}}}\n"
    (copy / "schema.yaml").write_text(schema)
    with pytest.raises(
        StageFailed, match=r"stage transform: the log does not fit its schema: purchase\.value: .* above"
    ):
        runner(write_config(copy, schema="schema.yaml")).run()


@pytest.mark.slow
def test_a_new_file_starts_a_run_by_itself(copy: Path) -> None:
    """The first look runs (and finds all made); then a file comes that cannot be read, and the old version stays."""
    file = write_config(copy, watch={"every": "1s", "settle": "1s"})
    said: list[str] = []
    assert watch(file, said.append, runs_max=1) == 0
    assert versions(copy / "models" / "shop") == [1]
    (copy / "events" / "bad.csv.gz").write_bytes(b"\x1f\x8b\x08\x00 this is no gzip file")
    assert watch(file, said.append, runs_max=1) == 1
    assert "what is in service stays" in said[-1] and said[-1].endswith("models/shop/1")
    store = Store(copy / "runs")
    assert "bad.csv.gz" in store.read_run(store.runs()[-1])["error"]


class Live:
    """A topic with the events of a history, or with purchases a hundred times as large and no visits."""

    def __init__(self, url: str, topic: str) -> None:
        self.settings = KafkaSettings(url=url, topic=topic, group=topic)

    async def send(self, file: Path, *, moved: bool) -> None:
        await ensure_topics(self.settings, [TopicSpec(self.settings.topic, 2, "partitions")])
        producer = AIOKafkaProducer(bootstrap_servers=self.settings.url, linger_ms=20)
        await producer.start()
        with gzip.open(file, "rt", encoding="utf-8") as rows:
            for row in list(csv.DictReader(rows))[-3_000:]:
                event: dict[str, Any] = {name: row[name] for name in ("user_id", "event_id", "type")}
                event["ts"] = int(row["ts"]) if row["ts"].isdecimal() else row["ts"]
                if row["value"]:
                    event["value"] = float(row["value"]) * (100.0 if moved else 1.0)
                if row["properties.plan"]:
                    event["properties"] = {"plan": row["properties.plan"]}
                if not moved or event["type"] == "purchase":
                    await producer.send(
                        self.settings.topic, json.dumps(event).encode(), key=row["user_id"].encode(),
                        timestamp_ms=iso_ms(row["ts"]) if isinstance(event["ts"], str) else event["ts"],
                    )  # fmt: skip
        await producer.stop()


@pytest.mark.kafka
async def test_the_live_topic_is_held_against_the_history(
    copy: Path, stack: Services, unique_name: str
) -> None:
    """By `ebbtide pipeline skew`, whose exit code a scheduler reads."""
    live = Live(stack.kafka_url, unique_name)
    with pytest.raises(OpsError, match="pipeline run"):
        await skew(load_config(write_config(copy, runs="others")), live.settings, ParseLimits(), 4_000)
    file = write_config(copy)
    await live.send(copy / "events" / "part=2" / "events.csv.gz", moved=False)
    found = await skew(load_config(file), live.settings, ParseLimits(), 4_000)
    assert (found.records, found.anomalies, found.rejected) == (3_000, [], {})
    await live.send(copy / "events" / "part=2" / "events.csv.gz", moved=True)
    end = sum(end for _, end in (await log_ranges(live.settings, unique_name)).values())
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "ebbtide.ops.cli", "pipeline", "skew", "--config", str(file), "--records",
         str(end - 3_000), "--json", str(copy / "skew.json")],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "EBBTIDE_KAFKA_URL": stack.kafka_url, "EBBTIDE_KAFKA__TOPIC": unique_name},
    )  # fmt: skip
    assert (done.returncode, (copy / "skew.json").exists()) == (1, True), done.stderr
    where = {each["where"] for each in json.loads((copy / "skew.json").read_text())["anomalies"]}
    assert where == {"log", "purchase.value"}
    assert "the share of" in done.stdout


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(300)
async def test_a_new_file_waits_until_the_live_topic_moves(
    copy: Path, stack: Services, unique_name: str
) -> None:
    """`watch.start_on: skew`: what is in service still fits what is live, so nothing is learned anew."""
    live, history = Live(stack.kafka_url, unique_name), copy / "events" / "part=2" / "events.csv.gz"
    await live.send(history, moved=False)
    (copy / "worker.yaml").write_text(
        json.dumps({"kafka": {"url": stack.kafka_url, "topic": unique_name}}), encoding="utf-8"
    )
    watching = {
        "every": "1s",
        "settle": "1s",
        "start_on": "skew",
        "settings": "worker.yaml",
        "records": 3_000,
    }
    file, said = write_config(copy, watch=watching), list[str]()

    def heard(words: str) -> None:
        said.append(words)
        if words == "the live topic is like the history":
            (copy / "events" / "bad.csv.gz").write_bytes(b"\x1f\x8b\x08\x00 a new file")
            for _ in range(2):
                asyncio.run(live.send(history, moved=True))

    assert await asyncio.to_thread(watch, file, heard, 2) == 1
    assert said[0].startswith("watching") and said[1] == "the first run starts"
    at = said.index("the live topic is like the history")
    assert "from history to the live topic" in said[at + 1]
    assert "new files: a run starts" in said[at + 2 :]


def test_every_stage_says_what_it_reads() -> None:
    """An input comes before the stage that reads it."""
    for at, stage in enumerate(STAGES):
        assert set(stage.inputs) <= set(NAMES[:at])


def test_a_run_is_shown_with_its_lineage(world: Path) -> None:
    def said(*arguments: str) -> Any:
        out = world / "shown.json"
        command = [sys.executable, "-m", "ebbtide.ops.cli", "pipeline", *arguments]
        done = subprocess.run(
            [*command, "--config", str(world / "pipeline.yaml"), "--json", str(out)], cwd=ROOT, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads(out.read_text())

    text, run = said("show", "1")
    assert "published" in text and "AUROC" in text and run["outcome"] == "done"
    for stage in STAGES:
        assert set(run["stages"][stage.name]["inputs"]) == set(stage.inputs)
    text, status = said("status")
    assert all(status["stages"].values()) and "Run" in text
