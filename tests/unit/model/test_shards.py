"""Examples in shards: bit for bit, in an order that seed, epoch and step decide, each row once, never all at once."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.model.examples.examples import Examples, Outcomes
from ebbtide.model.examples.shards import Shards, epochs_of, read_shards, write_shards

ROOT = Path(__file__).resolve().parents[3]
N, BATCH = 5_000, 64
WARM = 3
"""Shards from which on window, buffers and allocators hold what they will."""


def examples(n: int = N, width: int = 6, length: int = 4) -> Examples:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(n, width)).astype(np.float32)
    features[:, 0] = np.arange(n)  # says which row it is
    features[:3, 1] = (np.nan, -0.0, np.inf)
    inputs: dict[str, NDArray[Any]] = {
        "features": features,
        "kind": rng.integers(0, 5, (n, length)).astype(np.int32),
        **{name: rng.random((n, length)).astype(np.float32) for name in ("count", "value", "gap")},
    }
    return Examples(
        np.sort(rng.integers(0, n // 10, n)).astype(np.int32), rng.integers(0, 10**12, n),
        rng.integers(0, 3, n).astype(np.uint8),
        rng.integers(0, 2, n).astype(np.int8), inputs,
        Outcomes(rng.integers(0, 2, (n, 2)).astype(np.int8), *rng.integers(0, 10**12, (2, n, 2))), target=1,
        person=rng.integers(0, 9, n).astype(np.int32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "examples"
    write_shards(folder, examples(), shard_rows=1_700)
    return folder


def rows_of(batches: Any) -> list[int]:
    return [int(row) for inputs, _, _ in batches for row in inputs["features"].numpy()[:, 0]]


def test_what_is_written_is_read_bit_for_bit(shards: Path) -> None:
    one, two = examples(), read_shards(shards)
    assert len(list(shards.iterdir())) == 3 and len(two) == N
    for name in ("customer", "as_of", "cause", "label", "person"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes(), name
    assert two.target == 1 and one.outcomes is not None and two.outcomes is not None
    for name in ("labels", "wait_ms", "seen_ms"):
        assert getattr(one.outcomes, name).tobytes() == getattr(two.outcomes, name).tobytes(), name
    assert list(one.inputs) == list(two.inputs)
    for name, column in one.inputs.items():
        assert column.dtype == two.inputs[name].dtype and column.tobytes() == two.inputs[name].tobytes(), name


def test_no_rows_come_back_as_none(tmp_path: Path) -> None:
    write_shards(tmp_path / "none", examples().take(np.zeros(N, np.bool_)))
    found = read_shards(tmp_path / "none")
    assert len(found) == 0 and found.features.shape == (0, 6)


def test_every_row_comes_once_an_epoch_but_for_the_rest(shards: Path) -> None:
    rows = rows_of(Shards(shards).batches(BATCH, seed=1, epoch=0))
    assert len(rows) == len(set(rows)) == N // BATCH * BATCH
    both = [rows_of(Shards(shards).batches(BATCH, 1, 0, workers=2, worker=w)) for w in (0, 1)]
    assert not set(both[0]) & set(both[1]), "no row is in two workers' shares"
    assert len(both[0]) + len(both[1]) > N - 2 * BATCH


def test_a_batch_has_its_rows_targets(shards: Path) -> None:
    of = examples()
    weights = of.weights()
    inputs, churned, weight = next(iter(Shards(shards).batches(BATCH, 1, 0)))
    rows = inputs["features"].numpy()[:, 0].astype(int)
    assert churned.numpy().tolist() == of.churned[rows].tolist()
    assert weight.numpy().tobytes() == weights[rows].tobytes()
    assert inputs["kind"].numpy().tobytes() == of.inputs["kind"][rows].tobytes()


def test_the_order_is_of_seed_epoch_and_step_alone(shards: Path) -> None:
    order = rows_of(Shards(shards).batches(BATCH, 1, 0))
    assert rows_of(Shards(shards).batches(BATCH, 1, 0)) == order
    assert rows_of(Shards(shards).batches(BATCH, 1, 0, step=30)) == order[30 * BATCH :], (
        "it goes on in the middle"
    )
    assert rows_of(Shards(shards).batches(BATCH, 1, 1)) != order
    assert rows_of(Shards(shards).batches(BATCH, 2, 0)) != order
    assert rows_of(epochs_of(Shards(shards), BATCH, 1, 2)) == order + rows_of(
        Shards(shards).batches(BATCH, 1, 1)
    )


def test_neighbours_in_a_batch_come_from_far_apart(shards: Path) -> None:
    rows = np.array(rows_of(Shards(shards).batches(BATCH, 1, 0))).reshape(-1, BATCH)
    assert np.median(np.ptp(rows, axis=1)) > 0.8 * N
    assert abs(np.corrcoef(rows.ravel(), np.arange(rows.size))[0, 1]) < 0.1


def test_a_sample_is_of_whole_customers(shards: Path) -> None:
    of = examples()
    drawn = Shards(shards).sample(900, seed=4)
    assert 800 < len(drawn) <= 900
    for customer in np.unique(drawn.customer):
        assert (drawn.customer == customer).sum() == (of.customer == customer).sum()
    assert Shards(shards).sample(900, seed=4).as_of.tobytes() == drawn.as_of.tobytes()
    assert set(Shards(shards).sample(900, seed=5).customer) != set(drawn.customer)


def test_a_shard_cut_short_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", examples(), shard_rows=1_700)
    (second,) = (tmp_path / "s").glob("part-00001*")
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(SpecError, match=r"the shard .*part-00001-of-00003\.parquet cannot be read"):
        Shards(tmp_path / "s")
    second.unlink()
    with pytest.raises(SpecError, match="lacks some of its shards"):
        Shards(tmp_path / "s")


LARGER = """
import resource, sys
from pathlib import Path
import numpy as np
from ebbtide.featurestore.spec import load_spec
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.shards import Shards
from ebbtide.model.fitting.fit import Trainer
from ebbtide.model.graph.sizes import NetworkConfig

few, many = (Shards(Path(folder)) for folder in sys.argv[1:3])
config = TrainConfig(epochs_max=1, batch=4096, network=NetworkConfig(sequence=False, dense=(8,)))
trainer = Trainer(load_spec(sys.argv[3]), config, len(few))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
trainer.fit(few.sample(5_000), 1, stream=few)
before = peak()
found = trainer.fit(many.sample(5_000), 1, stream=many)
assert np.isfinite(found.loss).all()
print(len(few), len(many), peak() - before)
"""


@pytest.mark.slow
def test_a_network_learns_from_more_than_is_held(tmp_path: Path) -> None:
    """A gigabyte of examples (one shard under many names) costs less than a tenth of it beside a few shards."""
    from ebbtide.featurestore.record.features import features
    from ebbtide.featurestore.spec import load_spec

    spec_path = ROOT / "ops" / "specs" / "demo.yaml"
    spec = load_spec(spec_path)
    shard = examples(65_536, len(features(spec)), spec.sequence.length)
    shard.inputs["features"][:, 0] = 1.0
    shard.inputs["features"][:3] = 0.0
    write_shards(tmp_path / "one", shard)
    (one,) = (tmp_path / "one").iterdir()
    count = -(-1_000_000_000 // one.stat().st_size)
    for name, times in (("few", WARM), ("many", count)):
        (tmp_path / name).mkdir()
        for number in range(times):
            os.link(one, tmp_path / name / f"part-{number:05d}-of-{times:05d}.parquet")
    done = subprocess.run(
        [sys.executable, "-c", LARGER, str(tmp_path / "few"), str(tmp_path / "many"), str(spec_path)], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    few, many, grown_kib = map(int, done.stdout.split())
    assert many * WARM == count * few
    assert grown_kib * 1024 < 1_000_000_000 / 10, (
        f"{grown_kib:,} KiB more for {count} shards instead of {WARM}"
    )
