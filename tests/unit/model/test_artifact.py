"""A published model is there whole or not at all, and what was changed since is refused by name."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.config import TrainConfig
from ebbtide.model.errors import ModelDamaged, ModelError, ModelForeign, ModelMissing, ModelUnwritable
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.judging.evaluate import Evaluation, evaluate
from ebbtide.model.serving import warmup
from ebbtide.model.serving.artifact import export
from ebbtide.model.serving.folder import latest_version, locate, versions
from ebbtide.model.serving.manifest import Facts, verify
from ebbtide.model.serving.scorer import Scorer
from tests.support.seams.models import FACTS, TINY, network_of, publish, sample

LAYOUT = Layout(TINY)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("models"), spec=TINY)


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """A version to damage."""
    return Path(shutil.copytree(published, tmp_path / "kiosk" / "1"))


def test_the_manifest_says_what_the_model_is(published: Path) -> None:
    manifest = verify(published, LAYOUT.id)
    assert (manifest.name, manifest.version, manifest.title) == ("kiosk", 1, "kiosk/1")
    assert manifest.parsed_spec() == TINY
    assert manifest.horizon_ms == TINY.horizon_ms
    assert (manifest.enter, manifest.exit, manifest.alert_rate) == (0.6, 0.4, 0.05)
    assert (manifest.train_config, manifest.labels_until, manifest.evaluation) == (None, None, None)
    assert {"saved_model.pb", warmup.ROWS_FILE, warmup.SERVING_FILE} <= set(manifest.files)
    assert {"tensorflow", "keras", "numpy"} <= set(manifest.libraries)
    on_disk = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert on_disk == {*manifest.files, "manifest.json"}


def test_one_changed_byte_is_refused(copy: Path) -> None:
    for name in verify(copy).files:
        file = copy / name
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(ModelDamaged, match=f"kiosk/1: {name} "):
            Scorer.load(copy, LAYOUT)
        file.write_bytes(good)
    verify(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "variables" / "variables.index").unlink()
    with pytest.raises(ModelMissing, match=r"kiosk/1 lacks its file variables/variables\.index"):
        Scorer.load(copy, LAYOUT)


def test_another_layout_is_refused_and_both_ids_are_named(copy: Path) -> None:
    other = Layout(TINY.model_copy(update={"dedupe": 3}))
    with pytest.raises(ModelForeign, match=f"kiosk/1 .* {LAYOUT.id}, not for {other.id}.*train"):
        Scorer.load(copy, other)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "kiosk"}', "\x00\x01"])
def test_an_unreadable_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(ModelDamaged, match="kiosk/1"):
        Scorer.load(copy, LAYOUT)


def test_a_manifest_that_lists_other_features_is_refused(copy: Path) -> None:
    stored = json.loads((copy / "manifest.json").read_text())
    stored["features"].append("moon_phase")
    (copy / "manifest.json").write_text(json.dumps(stored))
    with pytest.raises(ModelForeign, match="other features"):
        verify(copy, LAYOUT.id)


def test_a_version_is_not_renumbered(copy: Path) -> None:
    """Else a watcher would find it newer than itself for ever."""
    with pytest.raises(ModelDamaged, match="kiosk/9 calls itself kiosk/1"):
        verify(copy.rename(copy.parent / "9"))


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelMissing, match="ebbtide train"):
            Scorer.load(path, LAYOUT)
    (tmp_path / "7").mkdir()
    with pytest.raises(ModelMissing, match=r"manifest\.json"):
        Scorer.load(tmp_path / "7", LAYOUT)


def test_every_refusal_says_what_to_do(copy: Path) -> None:
    (copy / "saved_model.pb").unlink()
    with pytest.raises(ModelError) as caught:
        verify(copy)
    assert caught.value.hint


def test_versions_ascend_and_the_latest_is_a_number_not_a_word(copy: Path) -> None:
    home = copy.parent
    for name in ("2", "10", ".publishing-x", "latest"):
        (home / name).mkdir()
    assert versions(home) == [1, 2, 10]
    assert latest_version(home) == home / "10"
    assert latest_version(home / "latest") is None
    assert locate(home.parent) == locate(home) == home / "10"
    (home.parent / "other" / "1").mkdir(parents=True)
    with pytest.raises(ModelMissing, match="kiosk, other"):
        locate(home.parent)


def test_the_next_version_is_one_above_and_none_is_overwritten(copy: Path) -> None:
    models = copy.parents[1]
    before = (copy / "manifest.json").read_bytes()
    with pytest.raises(ModelUnwritable, match="version 1 is there already"):
        publish(models, spec=TINY, version=1)
    assert publish(models, spec=TINY).name == "2"
    assert (copy / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in copy.parent.iterdir()) == ["1", "2"], "nothing half-written is left"


def test_what_fails_while_publishing_leaves_nothing_behind(tmp_path: Path) -> None:
    """A full disk as the model card is written, and a place where no folder can be made."""
    warm_up = sample(4, spec=TINY)

    def full(folder: Path) -> None:
        (folder / "model_card.md").write_text("half a")
        raise OSError(28, "No space left on device")

    def attempt(directory: Path) -> None:
        rows = (warm_up.rows, warm_up.as_of)
        export(directory, TINY, network_of(TINY), Calibrator(), FACTS, rows, attach=full)

    with pytest.raises(ModelUnwritable, match="No space left"):
        attempt(tmp_path)
    assert list((tmp_path / "kiosk").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelUnwritable, match="kiosk"):
        attempt(tmp_path / "file")


def test_what_is_attached_is_part_of_the_model(tmp_path: Path) -> None:
    warm_up = sample(4, spec=TINY)

    def card(folder: Path) -> None:
        (folder / "model_card.md").write_text("# Kiosk")

    path = export(
        tmp_path,
        TINY,
        network_of(TINY),
        Calibrator(),
        FACTS,
        (warm_up.rows, warm_up.as_of),
        attach=card,
    )
    assert "model_card.md" in verify(path).files
    (path / "model_card.md").write_text("# Better than it is")
    with pytest.raises(ModelDamaged, match="model_card"):
        verify(path)


def test_warm_up_rows_come_back_as_they_were(published: Path) -> None:
    rows, as_of = warmup.read(published, LAYOUT)
    wanted = sample(16, spec=TINY)
    assert rows.tobytes() == wanted.rows.tobytes()
    np.testing.assert_array_equal(as_of, wanted.as_of)


def test_the_records_for_tf_serving_are_three_framed_messages(published: Path) -> None:
    """One a signature; each names the model, its signature and every input (checked against TF Serving's own
    protos once, by hand: they are not among our dependencies)."""
    messages = [m.numpy() for m in tf.data.TFRecordDataset(str(published / warmup.SERVING_FILE))]
    assert len(messages) == 3
    for message, signature in zip(messages, (b"score", b"explain", b"features"), strict=True):
        assert message[0] == 6 << 3 | 2
        assert b"kiosk" in message
        assert signature in message
        assert all(name.encode() in message for name in (*LAYOUT.model_fields, "as_of"))


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_facts_with_a_figure_that_is_no_number_do_not_validate(figure: float) -> None:
    """In JSON it would be null, and read as nothing: a model with a threshold of NaN alerts nobody, or everybody."""
    found = Evaluation(1, 1, 0.5, {"auroc": {"model": figure}}, {}, {}, {})
    for changed in ({"evaluation": found}, {"enter": figure}, {"alert_rate": figure}):
        with pytest.raises(ValidationError):
            Facts.model_validate({**FACTS.model_dump(), **changed})


def test_facts_come_back_from_the_manifest_as_they_were() -> None:
    evaluation = evaluate(
        {"model": np.array([0.1, 0.9, 0.4]), "recency": np.array([0.2, 0.3, 0.4])},
        np.array([0, 1, 0]),
        np.arange(3),
        bootstrap=20,
    )
    facts = FACTS.model_copy(
        update={
            "train_config": TrainConfig(seed=4),
            "labels_until": datetime(2024, 4, 1, tzinfo=UTC),
            "evaluation": evaluation,
        }
    )
    assert Facts.model_validate_json(facts.model_dump_json()) == facts


def test_exit_must_not_lie_above_enter() -> None:
    with pytest.raises(ValidationError, match="exit must not lie above enter"):
        Facts.model_validate({**FACTS.model_dump(), "exit": 0.7})
