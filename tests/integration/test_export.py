"""A version for another runtime: what it says there, in which precision, and that it needs nothing of ours there."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.store.redis.codec import RecordCodec
from ebbtide.model.errors import ModelDamaged
from ebbtide.model.exporting.litert import Runner, in_litert, quantised, sizes
from ebbtide.model.exporting.recipes import PRECISIONS
from ebbtide.model.graph.calibrator import KNOTS_S, Calibrator
from ebbtide.model.graph.features import FeatureLayer
from ebbtide.model.graph.hazard import Hazard
from ebbtide.model.graph.head import Head
from ebbtide.model.graph.standard import logs
from ebbtide.model.serving import warmup
from ebbtide.model.serving.artifact import export
from ebbtide.model.serving.graph import check_graph
from ebbtide.model.serving.manifest import read_manifest, verify
from ebbtide.ops.cli import run
from tests.support.seams.models import FACTS, Sample, forest_of, network_of, sample

EVERYTHING = parse_spec(
    {
        "name": "everything", "horizon": "14d", "memory": "180d",
        "kinds": [
            {"name": "visit"},
            {
                "name": "purchase",
                "values": [
                    {"name": "amount", "aggregate": ["sum", "mean", "max", "last"]},
                    {"name": "shop", "aggregate": ["distinct"]},
                    {"name": "line", "aggregate": ["share"], "categories": ["food", "toys", "books"]},
                ],
            },
            {"name": "mail", "role": "contact"},
            {"name": "goodbye", "role": "terminal"},
            {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]},
            {"name": "renewal", "role": "attribute", "attribute": "date"},
        ],
        "targets": [
            {"name": "buys", "kinds": ["purchase"]},
            {"name": "leaves", "kinds": ["goodbye"], "churn_when": "present"},
        ],
        "windows": {"24h": 6, "7d": 7, "90d": 6}, "trends": [["7d", "90d"]], "half_lives": ["3d", "21d"],
        "days_active": [7, 90], "week": {"buckets": 14, "zone": "Europe/Berlin"}, "sequence": {"length": 6},
    }
)  # fmt: skip
"""Every part of a record that a feature is made of, and two heads."""
LAYOUT = Layout(EVERYTHING)


def hazard_of(spec: Spec, target: int) -> Hazard:
    """Of random numbers."""
    own = spec.only_target(target)
    steps = len(own.horizons_ms) - 1
    kernel = np.random.default_rng(target).normal(0.0, 0.1, (len(logs(spec)) + 1, steps)).astype(np.float32)
    at = own.horizons_ms.index(own.horizon_ms)
    return Hazard(own.horizons_ms, at, own.churn_is_absence, kernel, np.zeros(steps, np.float32))


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with all that one may have, and random weights."""
    warm_up, forest = sample(32, spec=EVERYTHING, seed=5), forest_of(EVERYTHING)
    # As trees are grown: between two values and not at one, where the last bit of a figure would choose the leaf.
    threshold = (forest.threshold + 3.7e-3 * (1 + np.abs(forest.threshold))).astype(np.float32)
    forest = replace(forest, threshold=threshold)
    by_silence = tuple(np.linspace(-0.2, 0.3, len(KNOTS_S)).tolist())
    calibrator = Calibrator(a=0.9, b=1.2, c=-0.3, by_silence=by_silence)
    networks = [network_of(EVERYTHING, seed) for seed in (0, 1)]
    return export(
        tmp_path_factory.mktemp("models"), EVERYTHING, networks[0], calibrator, FACTS, (warm_up.rows, warm_up.as_of),
        forest=forest, share=0.4, hazard=hazard_of(EVERYTHING, 0), sizes=(8,),
        further=[Head(networks[1], calibrator, forest, 0.3, hazard_of(EVERYTHING, 1))],
    )  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Sample:
    return sample(60, spec=EVERYTHING, seed=9)


@pytest.fixture(scope="module")
def right(version: Path, data: Sample) -> dict[str, NDArray[np.float32]]:
    """What the version says, by the record's fields."""
    record = {name: tf.constant(data.rows[name]) for name in LAYOUT.model_fields}
    out = tf.saved_model.load(str(version)).signatures["score"](**record, as_of=tf.constant(data.as_of))
    return {name: value.numpy() for name, value in out.items()}


@pytest.fixture(scope="module")
def plain(version: Path) -> bytes:
    """The version as a float32 file."""
    return in_litert(version, read_manifest(version))


# -- what GET returns


def test_stored_bytes_get_the_same_bits(
    version: Path, data: Sample, right: dict[str, NDArray[np.float32]]
) -> None:
    default = tf.saved_model.load(str(version)).signatures["serving_default"]
    stored = tf.constant(RecordCodec(LAYOUT.dtype).pack(data.rows))
    found = default(record=stored, as_of=tf.constant(data.as_of))
    assert found.keys() == right.keys() == {"probability", "logit", "survival"}
    for name, value in right.items():
        assert found[name].numpy().tobytes() == value.tobytes(), name
    check_graph(version, "everything/1")


def test_what_is_no_stored_record_is_refused(version: Path, data: Sample) -> None:
    default = tf.saved_model.load(str(version)).signatures["serving_default"]
    whole, *_ = RecordCodec(LAYOUT.dtype).pack(data.rows[:1])
    time = tf.constant(data.as_of[:1])
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{LAYOUT.fold_id}: send the bytes that GET"):
        default(record=tf.constant([whole[:-3]]), as_of=time)
    with pytest.raises(tf.errors.InvalidArgumentError, match="as_of has another length"):
        default(record=tf.constant([whole, whole]), as_of=time)


# -- LiteRT


def test_features_in_float32_are_nearly_those_in_float64() -> None:
    """LiteRT has no float64: what a feature loses is far below what a customer does between two events."""
    some = sample(400, spec=EVERYTHING, seed=2)
    record = {name: tf.constant(some.rows[name]) for name in LAYOUT.model_fields}
    wide, narrow = (
        FeatureLayer(LAYOUT, wide)(record, tf.constant(some.as_of))["features"].numpy()
        for wide in ("float64", "float32")
    )
    np.testing.assert_allclose(narrow, wide, rtol=2e-6, atol=2e-6)


def test_a_float32_file_says_what_the_version_says(
    plain: bytes, data: Sample, right: dict[str, NDArray[np.float32]]
) -> None:
    found = Runner(plain).score(data.rows, data.as_of)
    assert found.keys() == right.keys()
    for name, value in right.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("precision", "smaller", "off"),
    [("float16", 1.5, 0.001), ("int8-dynamic", 2.0, 0.02), ("int8", 2.0, 0.03)],
)
def test_a_smaller_file_says_nearly_the_same(
    version: Path, plain: bytes, data: Sample, right: dict[str, NDArray[np.float32]], precision: str,
    smaller: float, off: float,
) -> None:  # fmt: skip
    made = quantised(plain, precision, *warmup.read(version, LAYOUT))
    tables = 128 * (31 + 31 + 63) * 4  # of the forest that both heads have: there once, and as it is
    assert sizes(plain).weights - tables > smaller * (sizes(made).weights - tables)
    found = Runner(made).score(data.rows, data.as_of)
    differ = np.median(np.abs(found["logit"] - right["logit"]))
    assert 0 < differ < off, "of half of the rows: a row at a tree's threshold may fall to its other side"


def test_steps_have_no_scales_of_every_channel(version: Path, plain: bytes) -> None:
    """Of an unrolled GRU they would take more room than its weights."""
    by_channel, by_matrix = (
        sizes(quantised(plain, precision, *warmup.read(version, LAYOUT))).scales
        for precision in ("int8-dynamic", "int8")
    )
    assert by_matrix < by_channel


def test_weights_behind_the_model_are_counted() -> None:
    within, behind, model = schema.BufferT(), schema.BufferT(), schema.ModelT()
    within.data, behind.offset, behind.size = np.arange(10, dtype=np.uint8), 4_096, 1_000
    model.buffers = [within, behind]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    assert sizes(bytes(builder.Output())).weights == 1_010


def test_scales_and_zero_points_are_counted() -> None:
    told, tensor = schema.QuantizationParametersT(), schema.TensorT()
    graph, model = schema.SubGraphT(), schema.ModelT()
    told.scale, told.zeroPoint = np.ones(7, np.float32), np.zeros(7, np.int64)
    tensor.quantization = told
    graph.tensors, model.subgraphs, model.buffers = [tensor, schema.TensorT()], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    assert sizes(bytes(builder.Output())).scales == 7 * (4 + 8)


ALONE = """
import json, sys
sys.path[:] = [sys.argv[1], *(path for path in sys.path if "site-packages" not in path)]
import numpy as np
from ai_edge_litert.interpreter import Interpreter
for name in ("ebbtide", "tensorflow", "keras"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(name + " is there")
interpreter = Interpreter(model_path=sys.argv[2])
score = interpreter.get_signature_runner("score")
rows, as_of = np.load(sys.argv[3]), np.load(sys.argv[4])
out = [score(record=row[None], as_of=time[None])["logit"][0].tolist() for row, time in zip(rows, as_of)]
print(json.dumps(out))
"""


def test_a_device_needs_the_runtime_and_nothing_of_ours(
    plain: bytes, data: Sample, right: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    """In a process that finds the runtime and NumPy, and no other package."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("ai_edge_litert", "numpy", "numpy.libs", "flatbuffers"):
        found = find_spec(name)
        home = Path(str(found.origin)).parent if found else Path(np.__file__).parents[1] / name
        (packages / name).symlink_to(home)
    (tmp_path / "model.tflite").write_bytes(plain)
    np.save(tmp_path / "rows.npy", data.rows.view(np.uint8).reshape(len(data), -1))
    np.save(tmp_path / "as_of.npy", data.as_of)
    files = [str(tmp_path / name) for name in ("packages", "model.tflite", "rows.npy", "as_of.npy")]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), right["logit"], rtol=1e-5, atol=2e-5)


# -- the command


def test_the_command_writes_a_file_and_says_its_size(
    version: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "model.tflite", tmp_path / "figures.json"
    asked = ["model", "export", str(version), "--precision", "int8-dynamic"]
    assert run([*asked, "--out", str(out), "--json", str(figures)]) == 0
    told: dict[str, Any] = json.loads(figures.read_text())
    assert told["file"] == str(out) and told["model"] == "everything/1"
    assert told["bytes"] == out.stat().st_size > told["gzipped"] > 0
    assert told["record_bytes"] == LAYOUT.itemsize and told["difference_max"] < 0.05
    assert f"uint8[1, {LAYOUT.itemsize}]" in capfd.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"model.tflite", "figures.json"}


def test_what_cannot_be_exported_says_what_to_do(
    version: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "model.tflite")]
    assert run(["model", "export", str(tmp_path / "nowhere"), *out]) == 1
    assert "ebbtide train" in capfd.readouterr().err
    assert run(["model", "export", str(version), "--precision", "int4", *out]) == 2
    said = capfd.readouterr().err
    assert all(name in said for name in PRECISIONS)
    damaged = Path(shutil.copytree(version, tmp_path / "everything" / "1"))
    (damaged / "saved_model.pb").write_bytes(b"")
    assert run(["model", "export", str(damaged), *out]) == 1
    assert "is not what was published" in capfd.readouterr().err
    assert not (tmp_path / "model.tflite").exists()


def test_a_network_of_other_sizes_than_it_says_is_refused(version: Path) -> None:
    manifest = verify(version)
    wrong = {"network": {"units": 16}}
    other = manifest.model_validate({**manifest.model_dump(mode="json"), "train_config": wrong})
    with pytest.raises(ModelDamaged, match=r"everything/1 .*weights.*train it again"):
        in_litert(version, other)
