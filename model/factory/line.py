"""The line of the factory: its stages in order, each a function of declared inputs to one value.

    example_gen ─▶ statistics_gen ─▶ schema_gen ─▶ example_validator
         └──────────────▶ transform ◀───────────────────┘
                              └─▶ trainer ─▶ evaluator ─▶ refitter ─▶ infra_validator ─▶ pusher

TFX's names for what they name there; `refitter` is ours: what was judged ends before the test slice, and what is
published is the same recipe, trained on all that is labelled (`model/training/train.py` says why). A stage depends on
its inputs' contents and on the choices it lists, on nothing else. Its module is imported when it is asked: the first
four need no TensorFlow.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ebbtide.model.config import PLACES
from ebbtide.model.factory.plan import Plan, Work
from ebbtide.model.factory.values import Carriers

DATA, MODEL = "ebbtide.model.factory.data", "ebbtide.model.factory.models"
LIBRARIES = ("tensorflow", "keras", "scikit-learn", "numpy")
REPORT, EVALUATION, PUSHED = "report.json", "evaluation.json", "pushed.json"
"""Files for people and scripts, of refitter, evaluator and pusher."""
STATISTICS, PICTURE, SCHEMA, ANOMALIES = "statistics.json", "statistics.png", "schema.yaml", "anomalies.json"
"""The same of the stages before."""
DRAWN = ("examples_max", "snapshot_every_ms", "seed")
"""What of the configuration decides the examples."""
JUDGED = ("bootstrap", "alert_rate", "refit")
"""What of it the trainer does not read."""


@dataclass(frozen=True, slots=True)
class Stage:
    """inputs: names of the stages whose values it reads. choices: what of a plan it depends on, as JSON. words: what it
    does. `version` is raised when the same inputs and choices are to give something else."""

    name: str
    inputs: tuple[str, ...]
    module: str
    choices: Callable[[Plan], Mapping[str, Any]]
    words: str
    version: int = 1

    def make(self, work: Work) -> Any:
        """The stage's value; files beside it in `work.folder`. Raises EbbtideError, OSError."""
        return getattr(importlib.import_module(self.module), self.name)(work)

    def carriers(self, work: Work) -> Carriers:
        """How its value is carried to and from files."""
        carriers: Carriers = importlib.import_module(self.module).carriers(self.name, work)
        return carriers

    @property
    def needs_tensorflow(self) -> bool:
        return self.module == MODEL


def _train(plan: Plan, *without: str) -> dict[str, Any]:
    return plan.config.model_dump(mode="json", exclude={*PLACES, *without})


def _libraries() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


STAGES = (
    Stage(
        "example_gen", (), DATA,
        lambda p: {
            "spec": p.spec_json, "labels_until_ms": p.labels_until_ms,
            "sources": [[size, digest] for _, size, digest in p.sources],
        },
        "read the files of events",
    ),
    Stage(
        "statistics_gen", ("example_gen",), DATA, lambda p: {"spec": p.spec_json, "spans": p.spans},
        "count kinds and fields, span by span", version=2,
    ),
    Stage(
        "schema_gen", ("statistics_gen",), DATA,
        lambda p: {"schema": p.schema and p.schema.model_dump(mode="json")},
        "say what is expected of them", version=2,
    ),
    Stage(
        "example_validator", ("statistics_gen", "schema_gen"), DATA, lambda _: {}, "name what does not fit",
    ),
    Stage(
        "transform", ("example_gen", "example_validator"), MODEL,
        lambda p: {
            "spec": p.spec_json, **{name: _train(p)[name] for name in DRAWN}, "streams": p.config.stream_rows_max > 0,
        },
        "replay history into examples",
    ),
    Stage(
        "trainer", ("example_gen", "transform"), MODEL,
        lambda p: {"spec": p.spec_json, "train": _train(p, *JUDGED), "libraries": _libraries()},
        "find the recipe, fit the model before the test slice",
    ),
    Stage(
        "evaluator", ("example_gen", "transform", "trainer"), MODEL,
        lambda p: {"spec": p.spec_json, "train": _train(p)}, "judge it on the test slice, beside its baselines",
    ),
    Stage(
        "refitter", ("example_gen", "transform", "trainer", "evaluator"), MODEL,
        lambda p: {"spec": p.spec_json, "train": _train(p), "force": p.force, "libraries": _libraries()},
        "pass the gate, train on all that is labelled, choose thresholds",
    ),
    Stage(
        "infra_validator", ("example_gen", "transform", "trainer", "evaluator", "refitter"), MODEL,
        lambda p: {"spec": p.spec_json, "train": _train(p), "force": p.force, "libraries": _libraries()},
        "write the version, load it as a worker does, have it answer",
    ),
    Stage(
        "pusher", ("infra_validator",), MODEL, lambda p: {"out": str(p.out.resolve()), "name": p.spec.name},
        "publish it",
    ),
)  # fmt: skip
BY_NAME = {stage.name: stage for stage in STAGES}
