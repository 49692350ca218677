"""A training whose examples lie on disk: what it learns from is what a training in memory learns from, and what it
holds does not grow with them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.known import known_log
from ebbtide.model.examples.shards import Shards
from ebbtide.model.fitting.fit import Trainer
from ebbtide.model.graph.sizes import NetworkConfig
from ebbtide.model.training.cross_fit import learned_from
from ebbtide.model.training.prepare import Prepared, prepare
from tests.integration.test_train import KNOWN_UNTIL, demo_spec, simulated
from tests.support.factory import SPEC, TRAIN, runner, write_config, write_events, write_spec

ROOT = Path(__file__).resolve().parents[2]
ALL = 1_000_000
HELD = 1_000
CONFIG = TrainConfig(examples_max=2 * ALL, network_rows_max=ALL, rows_a_customer_max=ALL)
STREAMS = CONFIG.model_copy(update={"stream_rows_max": ALL, "examples_max": HELD})
LIMITS = 10
"""The examples on disk are so many times what a stage may hold because of them."""
BROWSE, BUY = ["page_view", "search", "add_to_cart", "purchase"], ["purchase"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Prepared]:
    """Everything in memory; everything on disk, and a sample of it in memory."""
    layout, folder = Layout(demo_spec()), tmp_path_factory.mktemp("stream") / "all"
    known = known_log(layout, simulated(demo_spec()), KNOWN_UNTIL)
    return prepare(layout, known, CONFIG), prepare(layout, known, STREAMS, folder=folder)


def rows_of(examples: Examples) -> list[tuple[Any, ...]]:
    """Every row with all that is known of it, in an order of its own."""
    assert examples.outcomes is not None
    columns = [*examples.inputs.values(), examples.outcomes.labels, examples.outcomes.wait_ms]
    plain = (examples.customer, examples.as_of, examples.cause, examples.label)
    return sorted(
        (*(int(column[at]) for column in plain), b"".join(column[at].tobytes() for column in columns))
        for at in range(len(examples))
    )


def test_all_labelled_examples_are_on_disk(pair: tuple[Prepared, Prepared]) -> None:
    """Bit for bit those that are drawn where all fit into memory."""
    held, streamed = pair
    assert streamed.streamed is not None and held.streamed is None
    assert len(held.drawn) > 4 * HELD
    assert rows_of(streamed.streamed.take(None)) == rows_of(held.drawn)


def test_what_is_held_is_whole_customers(pair: tuple[Prepared, Prepared]) -> None:
    held, streamed = pair
    assert HELD / 2 < len(streamed.drawn) <= HELD
    theirs = np.isin(held.drawn.customer, np.unique(streamed.drawn.customer))
    assert rows_of(streamed.drawn) == rows_of(held.drawn.take(theirs))


def ordered(features: Any, churned: Any, weight: Any) -> Any:
    table = np.column_stack([features, churned, weight]).astype(np.float64)
    return table[np.lexsort(table.T[::-1])]


@pytest.mark.parametrize("which", ["fold", "early", "usable"])
def test_a_network_streams_what_it_would_hold(pair: tuple[Prepared, Prepared], which: str) -> None:
    """The same rows, each once an epoch, with the same labels and weights, before the same dates."""
    held, streamed = pair
    fold = streamed.folds[0]
    rows, stream = {
        "fold": (held.folds[0].fit, streamed.stream(STREAMS, fold.before_ms, apart=fold.apart)),
        "early": (held.early, streamed.stream(STREAMS, streamed.early_before_ms)),
        "usable": (held.usable, streamed.stream(STREAMS)),
    }[which]
    assert stream is not None and len(stream) == len(rows) > HELD
    parts = [(x["features"], y, w) for x, y, w in stream.batches(1_000, seed=7, epoch=0)]
    found = [np.concatenate(column) for column in zip(*parts, strict=True)]
    assert len(found[0]) == len(rows) // 1_000 * 1_000
    last = [(x["features"], y, w) for x, y, w in stream.batches(len(stream), seed=7, epoch=0)]
    one = ordered(*(np.concatenate(column) for column in zip(*last, strict=True)))
    assert np.allclose(one, ordered(rows.features, rows.churned, rows.weights()), rtol=1e-6, atol=0)


def test_a_stream_is_thinned_as_rows_in_memory_are(pair: tuple[Prepared, Prepared]) -> None:
    held, streamed = pair
    few = {"rows_a_customer_max": 20}
    stream = streamed.stream(STREAMS.model_copy(update=few), streamed.early_before_ms)
    assert stream is not None
    assert len(stream) == len(learned_from(held.early, CONFIG.model_copy(update=few))) < len(held.early)
    bounded = streamed.stream(STREAMS.model_copy(update={"stream_rows_max": 3_000}))
    assert bounded is not None and len(bounded) == 3_000


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_a_shard_damaged_once_open_is_named(
    pair: tuple[Prepared, Prepared], tmp_path: Path, harm: str
) -> None:
    """By the file, in the middle of a fit, where TensorFlow would say that a function failed."""
    _, streamed = pair
    assert streamed.streamed is not None
    folder = tmp_path / "all"
    shutil.copytree(streamed.streamed.folder, folder)
    opened = Shards(folder)
    (shard,) = sorted(folder.iterdir())[:1]
    whole = shard.read_bytes()
    middle = len(whole) // 2
    match harm:
        case "cut":
            shard.write_bytes(whole[:middle])
        case "flipped":
            shard.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        case _:
            shard.unlink()
    config = TrainConfig(epochs_max=1, batch=512, network=NetworkConfig(sequence=False, dense=(4,)))
    trainer = Trainer(demo_spec(), config, len(opened))
    with pytest.raises(SpecError, match=rf"the shard .*{shard.name} cannot be read") as raised:
        trainer.fit(streamed.usable, 1, stream=opened)
    assert "remove the artifact" in raised.value.hint


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_line_that_streams_two_targets(tmp_path: Path) -> None:
    """From its first stage to its last, and once more with nothing new; each target by its own labels."""
    write_events(tmp_path / "events")
    spec = write_spec(tmp_path, {"name": "visit", "kinds": BROWSE}, {"name": "purchase", "kinds": BUY})
    asked = write_config(
        tmp_path, spec=str(spec), train={**TRAIN, "stream_rows_max": ALL, "examples_max": HELD}
    )
    run = runner(asked)
    assert run.run()["outcome"] == "done"
    assert all(stage["reused"] for stage in runner(asked).run()["stages"].values())
    shards = Shards(run.folder_of("transform") / "examples" / "streamed")
    whole = shards.take(None)
    assert len(whole) > 4 * HELD and whole.outcomes is not None
    for target in (0, 1):
        stream = shards.only(np.arange(len(whole)), np.ones(len(whole), np.float32), target)
        churned = sum(float(y.numpy().sum()) for _, y, _ in stream.batches(len(stream), seed=1, epoch=0))
        assert churned == (whole.outcomes.labels[:, target] == 1).sum()
    assert (whole.outcomes.labels[:, 0] != whole.outcomes.labels[:, 1]).any()


LINE = """
import json, sys
from pathlib import Path
from tests.support.factory import runner

def peak_bytes():
    said = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(said["VmHWM"].split()[0]) * 1024

peaks, under_way = {}, ["start"]
def next_stage(name, _):
    peaks[under_way[-1]] = peak_bytes()
    under_way.append(name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew

line = runner(Path(sys.argv[1]))
line.told = next_stage
assert line.run()["outcome"] == "done"
next_stage("end", "")
folder = line.folder_of("transform") / "examples" / "streamed"
print(json.dumps([sum(each.stat().st_size for each in folder.iterdir()), peaks]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_line_of_ten_times_what_it_may_hold(tmp_path: Path) -> None:
    """The whole line on one log, with few dates of snapshots and with many: no stage's peak RSS grows by a tenth of
    what the examples grow by. Log, records and panels are the same: what they take is no matter of examples."""
    write_events(tmp_path / "events", customers=4_000)
    spec = yaml.safe_load(SPEC.read_text(encoding="utf-8"))
    spec["sequence"] = {**spec["sequence"], "length": 96}  # many bytes a row
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    found = {}
    for name, hours in (("few", 96), ("many", 4)):
        train = {
            **TRAIN, "examples_max": 20 * HELD, "stream_rows_max": 10 * ALL, "rows_a_customer_max": ALL, "batch": 4_096,
            "snapshot_every_ms": hours * 3_600_000, "network": {"sequence": False, "dense": [4]},
        }  # fmt: skip
        (tmp_path / name).mkdir()
        file = write_config(
            tmp_path / name, events="../events", spec=str(tmp_path / "spec.yaml"), train=train
        )
        done = subprocess.run(
            [sys.executable, "-c", LINE, str(file)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2_000:]
        found[name] = json.loads(done.stdout)
    (few, base), (many, peaks) = found["few"], found["many"]
    grown = {stage: peaks[stage] - base[stage] for stage in peaks}
    told = ", ".join(
        f"{stage} {peak / 1e6:,.0f} ({grown[stage] / 1e6:+,.0f})" for stage, peak in peaks.items()
    )
    print(f"{few / 1e6:,.0f} and {many / 1e6:,.0f} MB of examples; peaks in MB: {told}")
    assert many - few > 1_000_000_000
    assert max(grown.values()) < (many - few) / LIMITS, told
