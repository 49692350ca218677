"""A search for better choices over the examples of a pipeline, gone on with where it was ended.

    transform's artifact ─▶ trial 0: the configuration as it is ─▶ trials by TPE, hopeless ones ended early ─▶ the best

The study lies among the runs (SQLite) under the digest of its examples: other examples are another study. Each trial is
a run in TensorBoard, with its choices on the HParams page.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from ebbtide.model.config import TrainConfig
from ebbtide.ops.pipeline.run import Runner
from ebbtide.ops.pipeline.train import EXAMPLES

WIDTHS = {"32": (32,), "64-32": (64, 32), "128-64": (128, 64)}
STARTING = 3
"""Trials before any is ended early."""
Choices = dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Tuned:
    """log_loss: of the best trial; first: of the configuration as it was, None if it has no end yet."""

    study: str
    trials: int
    pruned: int
    first: float | None
    log_loss: float
    choices: Choices

    def as_json(self) -> dict[str, Any]:
        """`train`: what to write into the configuration."""
        return {
            "study": self.study, "trials": self.trials, "pruned": self.pruned, "first": self.first,
            "log_loss": self.log_loss, "choices": self.choices, "train": applied({}, self.choices),
        }  # fmt: skip


def tune(runner: Runner, trials: int, log_dir: Path | None, say: Callable[[str], None]) -> Tuned:
    """Run trials until the study has so many. Raises EbbtideError; a trial whose network diverges is told and left."""
    record = runner.run(EXAMPLES)
    digest = record["stages"]["transform"]["digest"]
    prepared, config = runner.value("transform"), runner.plan.config
    from ebbtide.model.errors import ModelRefused  # noqa: PLC0415 - with the line below
    from ebbtide.model.factory.trial import Ground, trial  # noqa: PLC0415 - TensorFlow, loaded quietly by the runner
    from ebbtide.model.fitting.board import hparams  # noqa: PLC0415 - see above

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with runner.store.locked():
        study = optuna.create_study(
            study_name=f"{runner.plan.spec.name}-{digest[:12]}",
            storage=f"sqlite:///{runner.store.root / 'tune.db'}",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTING),
        )
        for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(left.number, state=TrialState.FAIL)  # whoever ran it was ended
        if not study.trials:
            study.enqueue_trial(as_choices(config))
        ground = Ground.of(prepared, config)

        def objective(asked: optuna.Trial) -> float:
            chosen = suggested(asked)
            run = f"trial {asked.number}"
            say(f"{run}: {', '.join(f'{name} {value}' for name, value in chosen.items())}")
            changed = TrainConfig.model_validate(applied(config.model_dump(), chosen)).model_copy(
                update={"log_dir": log_dir}
            )

            def seen(epoch: int, loss: float) -> None:
                asked.report(loss, epoch)
                if asked.should_prune():
                    raise optuna.TrialPruned

            lost = trial(ground, changed, run, seen)
            if log_dir is not None:
                hparams(log_dir, run, chosen, lost)
            return lost

        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        while (done := len(study.get_trials(deepcopy=False, states=ended))) < trials:
            # The same seed at the same place of a study, whether it was gone on with or not.
            study.sampler = optuna.samplers.TPESampler(
                seed=config.seed * 1_000 + done, n_startup_trials=STARTING
            )
            study.optimize(objective, n_trials=1, catch=(ModelRefused,))
    first = study.trials[0].value if study.trials[0].state == TrialState.COMPLETE else None
    pruned = len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))
    return Tuned(
        study.study_name, len(study.trials), pruned, first, study.best_value, dict(study.best_params)
    )


def suggested(asked: optuna.Trial) -> Choices:
    """A point of the space that is searched."""
    return {
        "learning_rate": asked.suggest_float("learning_rate", 3e-4, 1e-1, log=True),
        "weight_decay": asked.suggest_float("weight_decay", 1e-2, 1.0, log=True),
        "batch": asked.suggest_categorical("batch", (128, 256, 512, 1024)),
        "dropout": asked.suggest_float("dropout", 0.0, 0.5),
        "units": asked.suggest_int("units", 4, 96),
        "dense": asked.suggest_categorical("dense", tuple(WIDTHS)),
    }


def as_choices(config: TrainConfig) -> Choices:
    """The configuration as it is, as far as the space holds it."""
    widths = {widths: name for name, widths in WIDTHS.items()}
    found: Choices = {
        "learning_rate": config.learning_rate, "weight_decay": config.weight_decay, "batch": config.batch,
        "dropout": config.network.dropout, "units": config.network.units,
    }  # fmt: skip
    dense = widths.get(config.network.dense)
    return found if dense is None else {**found, "dense": dense}


def applied(train: Mapping[str, Any], chosen: Choices) -> dict[str, Any]:
    """`train` with these choices in their places."""
    network = {**train.get("network", {}), "dropout": chosen["dropout"], "units": chosen["units"]}
    network["dense"] = list(WIDTHS[str(chosen["dense"])])
    plain = {name: chosen[name] for name in ("learning_rate", "weight_decay", "batch")}
    return {**train, **plain, "network": network}
