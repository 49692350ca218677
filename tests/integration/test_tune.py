"""A search for better choices: gone on with, honest in time, and on TensorBoard's page of hyperparameters."""

from pathlib import Path

import optuna
import pytest

from ebbtide.model.config import TrainConfig
from ebbtide.model.factory.trial import Ground
from ebbtide.ops.pipeline.tune import applied, as_choices, tune
from tests.support.factory import TRAIN, runner, write_config, write_events
from tests.support.servers.tensorboard import tensorboard

SMALL = {**TRAIN, "network": {"units": 4, "embed": 2, "dense": [32]}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    write_events(folder / "events")
    return write_config(folder, train=SMALL)


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_and_is_shown(world: Path, tmp_path: Path) -> None:
    said: list[str] = []
    first = tune(runner(world), 2, tmp_path, said.append)
    assert first.trials == 2 and first.first is not None and first.log_loss <= first.first
    assert said[0].startswith("trial 0: learning_rate 0.003"), "the configuration as it is comes first"
    study = optuna.load_study(study_name=first.study, storage=f"sqlite:///{world.parent}/runs/tune.db")
    study.ask()  # as a search leaves it that is killed in a trial
    again = tune(runner(world), 3, tmp_path, said.append)
    assert again.study == first.study and again.trials == 4, "two, the one that was killed, one more"
    assert len([line for line in said if line.startswith("trial")]) == 3
    with tensorboard(tmp_path, "trial 0") as ask:
        body = {"experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"],
                "colParams": [], "startIndex": 0, "sliceSize": 10}  # fmt: skip
        groups = ask("plugin/hparams/session_groups", body)["sessionGroups"]
    shown = {group["name"]: group["hparams"] for group in groups}
    assert shown["trial 0"]["units"] == 4 and shown["trial 0"]["dense"] == "32" and len(shown) == 3


def test_a_trial_never_sees_the_test_slice(world: Path) -> None:
    run = runner(world)
    run.run(["example_gen", "statistics_gen", "schema_gen", "example_validator", "transform"])
    prepared = run.value("transform")
    ground = Ground.of(prepared, run.plan.config)
    start, horizon = prepared.slices.test[0], prepared.layout.spec.horizon_ms
    assert (ground.later.as_of + horizon <= start).all() and (ground.rows.as_of + horizon <= start).all()
    assert ground.rows.as_of.max() + horizon <= ground.later.as_of.min(), (
        "what is learned ends before what is asked"
    )


def test_choices_are_put_where_they_belong() -> None:
    config = TrainConfig()
    changed = TrainConfig.model_validate(applied(config.model_dump(), {**as_choices(config), "units": 7}))
    assert changed == config.model_copy(update={"network": config.network.model_copy(update={"units": 7})})
