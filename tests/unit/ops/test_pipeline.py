"""A pipeline's configuration, its store and its lock: nothing here needs TensorFlow."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ebbtide.model.factory.line import STAGES
from ebbtide.ops.errors import OpsError, SettingsError
from ebbtide.ops.pipeline.config import load_config
from ebbtide.ops.pipeline.run import InputMissing, StageFailed
from ebbtide.ops.pipeline.store import ArtifactDamaged, RunUnderWay, Store
from ebbtide.ops.pipeline.watch import look
from tests.support.factory import runner, write_config, write_events

ROOT = Path(__file__).resolve().parents[3]
EVENT = "user_id,event_id,type,ts,value,properties.plan\na,e,page_view,1700000000000,,\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_events(tmp_path / "events", customers=40)
    return tmp_path


FIRST = ("example_gen", "statistics_gen", "schema_gen", "example_validator")


def test_stages_that_know_events_run_without_tensorflow(folder: Path) -> None:
    file = write_config(folder)
    code = (
        "import sys; from ebbtide.ops.cli import run\n"
        f"for name in {FIRST}: assert run(['pipeline', 'stage', name, '--config', {str(file)!r}]) == 0\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    store = Store(folder / "runs")
    assert [list(store.read_run(number)["stages"]) for number in store.runs()] == [list(FIRST)], (
        "one run, gone on with"
    )
    assert (folder / "runs").stat().st_mode & 0o077 == 0, "customers' ids are for their owner alone"


def test_what_has_not_changed_is_not_done_again(folder: Path) -> None:
    file = write_config(folder)
    first = runner(file).run(FIRST)["stages"]
    (folder / "events" / "part=0" / "events.csv.gz").touch()
    again = runner(file).run(FIRST)["stages"]
    assert {name: of["key"] for name, of in again.items()} == {name: of["key"] for name, of in first.items()}
    spans = runner(write_config(folder, spans=8)).run(FIRST)["stages"]
    assert spans["example_gen"]["key"] == first["example_gen"]["key"] and spans["example_gen"]["reused"]
    assert spans["statistics_gen"]["key"] != first["statistics_gen"]["key"]


def test_every_artifact_says_what_it_was_made_of(folder: Path) -> None:
    run = runner(write_config(folder))
    record = run.run(FIRST)
    for stage in STAGES[: len(FIRST)]:
        of = record["stages"][stage.name]
        artifact = run.store.find(stage.name, of["key"])
        assert artifact is not None
        assert of["inputs"] == {name: record["stages"][name]["digest"] for name in stage.inputs}
        assert artifact.seconds > 0 and artifact.digest == of["digest"]
        artifact.check()


def test_a_file_cut_short_is_named_with_its_stage(folder: Path) -> None:
    file = write_config(folder)
    first = runner(file)
    first.run(FIRST[:1])
    (array,) = list(first.folder_of("example_gen").glob("arrays/0003.npy"))
    array.write_bytes(array.read_bytes()[:-8])
    with pytest.raises(
        ArtifactDamaged, match=r"stage example_gen: its file .*0003\.npy has .* bytes of"
    ) as caught:
        runner(file).run(FIRST)
    assert "remove" in caught.value.hint


def test_one_unreadable_file_of_many_is_named(folder: Path) -> None:
    for number in range(20):
        (folder / "events" / f"more-{number}.csv").write_text(EVENT)
    bad = folder / "events" / "part=1" / "events.csv.gz"
    bad.write_bytes(bad.read_bytes()[:-2_000])
    run = runner(write_config(folder))
    with pytest.raises(
        StageFailed, match=r"^stage example_gen: .*part=1/events\.csv\.gz is a damaged gzip file"
    ) as caught:
        run.run(FIRST)
    assert "copy it again" in caught.value.hint
    assert run.store.read_run(1)["outcome"] == "failed" and "part=1" in run.store.read_run(1)["error"]
    assert not list((folder / "runs" / "artifacts").glob("*/*")), "nothing half-made is left"


def test_two_runs_at_once_do_not_meet(folder: Path) -> None:
    file = write_config(folder)
    run = runner(file)
    with run.store.locked():
        assert run.store.busy
        with pytest.raises(RunUnderWay, match="another run is at work"):
            runner(file).run(FIRST)
    assert run.run(FIRST)["outcome"] == "part"


def test_a_stage_alone_says_what_it_lacks(folder: Path) -> None:
    with pytest.raises(InputMissing, match="schema_gen reads what statistics_gen makes") as caught:
        runner(write_config(folder)).run(["schema_gen"])
    assert "pipeline stage statistics_gen" in caught.value.hint


def test_an_edited_schema_is_what_counts(folder: Path) -> None:
    file = write_config(folder, schema="schema.yaml")
    run = runner(file)
    run.run(FIRST)
    load_config(file).offer_schema(run.value("schema_gen"))
    text = (folder / "schema.yaml").read_text()
    assert "yours to edit" in text and "purchase.value" in text
    (folder / "schema.yaml").write_text(text.replace("presence_min: 0.9", "presence_min: 1.0", 1))
    load_config(file).offer_schema(run.value("schema_gen"))
    assert "presence_min: 1.0" in (folder / "schema.yaml").read_text(), "never written over"
    again = runner(file).run(FIRST)["stages"]
    assert not again["schema_gen"]["reused"] and again["statistics_gen"]["reused"]


def test_artifacts_of_old_runs_are_removed(folder: Path) -> None:
    keys = []
    for spans in (2, 3, 4):
        run = runner(write_config(folder, spans=spans))
        keys.append(run.run(FIRST)["stages"]["statistics_gen"]["key"])
    run.store.forget(2)
    assert {path.name for path in (folder / "runs/artifacts/statistics_gen").iterdir()} == set(keys[1:])
    assert run.store.find("example_gen", run.run(FIRST)["stages"]["example_gen"]["key"]) is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evnts": "x"}, "evnts"),
        ({"events": []}, "name at least one"),
        ({"spans": 1}, "spans"),
        ({"train": {"epochs": 3}}, "train.epochs"),
        ({"horizon": "soon"}, "horizon"),
        ({"labels_until": "yesterday"}, "labels_until"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        load_config(write_config(tmp_path, **changes))


def test_paths_are_seen_from_the_configuration(folder: Path) -> None:
    config = load_config(write_config(folder, schema="s.yaml"))
    assert config.out == folder / "models" and config.expected == folder / "s.yaml"
    assert config.events == (str(folder / "events"),)
    assert config.train.network.dropout == 0.3, "a network of other sizes trains as the default does"


def test_no_run_of_that_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match="no run 7"):
        Store(tmp_path).read_run(7)


def test_a_new_file_is_seen(folder: Path) -> None:
    file = write_config(folder)
    config = load_config(file)
    before = look(file, config)
    assert before == look(file, config)
    (folder / "events" / "new.csv").write_text(EVENT)
    assert look(file, config) != before
    assert look(file, load_config(write_config(folder, events="nowhere/*.csv"))) == ()
