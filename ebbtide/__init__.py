"""Ebbtide: streaming, real-time churn scoring.

    ebbtide.featurestore   what do we know of a customer as of t
    ebbtide.model          how likely is churn; the factory of its own models
    ebbtide.stream         events to alerts
    ebbtide.ops            run it, watch it

The four packages lie beside this folder, where a reader looks for them, and are linked into it. So the distribution
owns one import name: `model`, `ops` and `stream` alone would meet other people's modules of that name.

What a notebook needs stands here by itself:

    import ebbtide

    spec = ebbtide.load_spec("spec.yaml")
    log = ebbtide.read_log("events.csv.gz", spec)            # validated columns, in arrival order
    folded = ebbtide.fold_log(log, spec)                     # decision points and records, by the service's own fold
    published = ebbtide.train(log, spec, "models", created=datetime.now(UTC))
    published.report.evaluation.values["auroc"]
    scorer = ebbtide.Scorer.load(published.path, folded.layout)
    p = scorer.score(folded.points.rows, folded.points.as_of)
    ebbtide.evaluate({"model": p, "recency": silence}, churned, folded.points.customer)

Each is imported when it is first asked for (PEP 562), since TensorFlow takes seconds: `import ebbtide` loads neither it
nor pyarrow nor numba.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# A type checker follows no `__getattr__`, so it is told the same names again; a test compares the two lists. Inside the
# packages such imports are forbidden: there they would hide a seam in the wrong place, here there is none to hide.
if TYPE_CHECKING:
    from ebbtide.featurestore.files.event_log import EventLog
    from ebbtide.featurestore.files.reader import read_log
    from ebbtide.featurestore.fold_log import FoldedLog, fold_log
    from ebbtide.featurestore.record.layout import Layout
    from ebbtide.featurestore.spec import Spec, load_spec
    from ebbtide.model.config import TrainConfig
    from ebbtide.model.judging.evaluate import Evaluation, evaluate
    from ebbtide.model.serving.scorer import Scorer
    from ebbtide.model.training.report import Published, TrainReport
    from ebbtide.model.training.train import train_model as train

__all__ = [
    "Evaluation",
    "EventLog",
    "FoldedLog",
    "Layout",
    "Published",
    "Scorer",
    "Spec",
    "TrainConfig",
    "TrainReport",
    "evaluate",
    "fold_log",
    "load_spec",
    "read_log",
    "train",
]

_HOMES = {
    "Evaluation": "ebbtide.model.judging.evaluate",
    "EventLog": "ebbtide.featurestore.files.event_log",
    "FoldedLog": "ebbtide.featurestore.fold_log",
    "Layout": "ebbtide.featurestore.record.layout",
    "Published": "ebbtide.model.training.report",
    "Scorer": "ebbtide.model.serving.scorer",
    "Spec": "ebbtide.featurestore.spec",
    "TrainConfig": "ebbtide.model.config",
    "TrainReport": "ebbtide.model.training.report",
    "evaluate": "ebbtide.model.judging.evaluate",
    "fold_log": "ebbtide.featurestore.fold_log",
    "load_spec": "ebbtide.featurestore.spec",
    "read_log": "ebbtide.featurestore.files.reader",
    "train": "ebbtide.model.training.train",
}
_RENAMED = {"train": "train_model"}

if not TYPE_CHECKING:  # which would take any name for ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), _RENAMED.get(name, name))
        globals()[name] = found  # asked for once
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
