"""A model only computes: a graph that would do more is refused before any of it runs; one that does not, passes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.python.trackable.resource import CapturableResource

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.errors import ModelDamaged, ModelMissing, ModelUntrusted
from ebbtide.model.graph.served import input_specs
from ebbtide.model.serving.folder import MANIFEST
from ebbtide.model.serving.graph import check_graph
from ebbtide.model.serving.manifest import sha256_of, verify
from ebbtide.model.serving.scorer import Scorer
from tests.support.seams.models import LAYOUT, SPEC, TINY, publish

TINY_LAYOUT = Layout(TINY)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("models"), spec=TINY, sizes=(8,))


@pytest.fixture
def version(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "kiosk" / "1"))


def reseal(version: Path, **files: str) -> None:
    """A manifest as whoever changed the files would write it."""
    stored = json.loads((version / MANIFEST).read_text())
    found = [p.relative_to(version).as_posix() for p in version.rglob("*") if p.is_file()]
    stored["files"] = {name: sha256_of(version / name) for name in found if name != MANIFEST} | files
    (version / MANIFEST).write_text(json.dumps(stored))


def test_what_we_publish_only_computes(published: Path, tmp_path: Path) -> None:
    check_graph(published, "kiosk/1")
    check_graph(publish(tmp_path, forest=True), "corner_shop/1")
    assert LAYOUT.spec == SPEC


# -- programs


class AtLoad(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """Writes a file as it is loaded: a table whose initializer does."""

    def __init__(self, target: Path) -> None:
        super().__init__()

        class Resource(CapturableResource):  # type: ignore[misc]  # as above, it has none
            def _create_resource(self) -> Any:
                return tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.string)

            def _initialize(self) -> Any:
                tf.raw_ops.WriteFile(filename=str(target), contents="owned")
                return tf.constant(0)

        self.resource = Resource()
        self.resource.resource_handle  # noqa: B018 - made here, as a table does


def scoring(body: Callable[[tf.Tensor], tf.Tensor]) -> dict[str, Any]:
    def score(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        p = body(tf.cast(inputs["as_of"], tf.float32))
        return {"probability": p, "logit": p}

    return {"score": tf.function(score).get_concrete_function(**input_specs(TINY_LAYOUT))}


def writing(target: Path) -> Callable[[tf.Tensor], tf.Tensor]:
    def body(p: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([tf.raw_ops.WriteFile(filename=str(target), contents="owned")]):
            return tf.identity(p)

    return body


def nested(target: Path) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda p: tf.while_loop(lambda p: tf.reduce_all(p < 1.0), lambda p: [writing(target)(p)], [p])[0]


def saving(target: Path) -> Callable[[tf.Tensor], tf.Tensor]:
    def body(p: tf.Tensor) -> tf.Tensor:
        op = tf.raw_ops.SaveV2(
            prefix=str(target), tensor_names=["p"], shape_and_slices=[""], tensors=[tf.zeros(())]
        )
        with tf.control_dependencies([op]):
            return tf.identity(p)

    return body


PROGRAMS: dict[str, Callable[[Path], tuple[tf.Module, dict[str, Any]]]] = {
    "an initializer": lambda target: (AtLoad(target), scoring(tf.sigmoid)),
    "WriteFile": lambda target: (tf.Module(), scoring(writing(target))),
    "WriteFile in a loop": lambda target: (tf.Module(), scoring(nested(target))),
    "SaveV2 in a score": lambda target: (tf.Module(), scoring(saving(target))),
    "ReadFile": lambda target: (
        tf.Module(),
        scoring(lambda p: p + tf.strings.to_number(tf.io.read_file("/etc/hostname"))),
    ),
    "Python": lambda target: (
        tf.Module(),
        scoring(lambda p: tf.py_function(lambda p: p, [p], tf.float32)),
    ),
    "an asset": lambda target: (with_asset(target), scoring(tf.sigmoid)),
}


def with_asset(target: Path) -> tf.Module:
    module = tf.Module()
    given = target.parent / "given"
    given.write_text("secret")
    module.asset = tf.saved_model.Asset(str(given))
    return module


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_graph_that_does_more_is_refused_before_it_runs(version: Path, tmp_path: Path, what: str) -> None:
    target = tmp_path / "written"
    module, signatures = PROGRAMS[what](target)
    extra = tmp_path / "extra"
    (version / "assets.extra").rename(extra)
    shutil.rmtree(version / "variables")
    tf.saved_model.save(module, str(version), signatures=signatures)
    extra.rename(version / "assets.extra")
    target.unlink(missing_ok=True)
    reseal(version)
    verify(version, TINY_LAYOUT.id)
    with pytest.raises(ModelUntrusted, match="kiosk/1 does more than compute") as caught:
        Scorer.load(version, TINY_LAYOUT)
    assert caught.value.hint
    assert not list(tmp_path.glob("written*"))


def test_a_second_graph_beside_the_first_is_refused(version: Path) -> None:
    shutil.copy(version / "saved_model.pb", version / "saved_model.cpb")
    reseal(version)
    with pytest.raises(ModelUntrusted, match=r"second graph, saved_model\.cpb"):
        Scorer.load(version, TINY_LAYOUT)


def test_what_is_no_graph_is_damaged(version: Path) -> None:
    (version / "saved_model.pb").write_bytes(b"\xff" * 99)
    reseal(version)
    with pytest.raises(ModelDamaged, match="graph cannot be read"):
        Scorer.load(version, TINY_LAYOUT)


# -- files


def test_a_file_that_the_manifest_does_not_list_is_refused(version: Path) -> None:
    (version / "variables" / "more").write_text("x")
    with pytest.raises(ModelUntrusted, match="holds variables/more"):
        verify(version)


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../1/saved_model.pb", "variables/../saved_model.pb", "./x", ".", ""]
)
def test_a_name_outside_the_folder_is_refused(version: Path, name: str) -> None:
    reseal(version, **{name: "0" * 64})
    with pytest.raises(ModelUntrusted, match="outside its folder"):
        verify(version)


def test_what_is_no_regular_file_is_refused(version: Path) -> None:
    """Not read, either: /dev/zero has no end."""
    graph = version / "saved_model.pb"
    elsewhere = graph.rename(version.parent / "elsewhere")
    for target in (elsewhere, Path("/dev/zero")):
        graph.symlink_to(target)
        with pytest.raises(ModelUntrusted, match=r"saved_model\.pb is no regular file"):
            verify(version)
        graph.unlink()
    with pytest.raises(ModelMissing):
        verify(version)


# -- signatures


def test_with_a_key_set_only_what_it_signed_is_served(tmp_path: Path) -> None:
    models = tmp_path / "models"
    signed, unsigned = (publish(models, spec=TINY, sizes=(8,), key=key) for key in ("k", None))
    assert verify(signed, key="k").version == 1
    assert verify(signed).version == 1, "a signature that nobody asks for does no harm"
    with pytest.raises(ModelUntrusted, match="kiosk/2 is not signed"):
        verify(unsigned, key="k")
    with pytest.raises(ModelUntrusted, match="another key"):
        verify(signed, key="other")
    stored = json.loads((signed / MANIFEST).read_text())
    (signed / MANIFEST).write_text(json.dumps({**stored, "enter": 0.999}))
    with pytest.raises(ModelUntrusted, match="changed since"):
        verify(signed, key="k")
