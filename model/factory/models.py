"""The stages that know examples and models. What they do is `model/training/train.py`'s; here is what each takes and
leaves behind.

Examples are carried as shards, a network as its weights. Baselines are not carried at all: they are fitted again from
the same rows, which takes seconds and gives the same trees (`fitting/baselines.py`). A run in one process reads nothing
back.
"""

import json
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.errors import ModelRefused
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.known import Known
from ebbtide.model.examples.made_up import made_up
from ebbtide.model.examples.shards import Shards, read_shards, write_shards
from ebbtide.model.factory.line import EVALUATION, PUSHED, REPORT
from ebbtide.model.factory.plan import Work
from ebbtide.model.factory.values import Carrier, Carriers
from ebbtide.model.fitting.baselines import Fitted
from ebbtide.model.fitting.board import project
from ebbtide.model.graph.network import build_network
from ebbtide.model.judging.gate import check_gate
from ebbtide.model.serving import runtime
from ebbtide.model.serving.artifact import push
from ebbtide.model.serving.scorer import Scorer
from ebbtide.model.training.cross_fit import learned_from
from ebbtide.model.training.prepare import Prepared, check_slices, prepare
from ebbtide.model.training.train import (
    Finished,
    Judged,
    Learned,
    finish,
    judge_learned,
    learn,
    write_version,
)

CANDIDATE, EXAMPLES, STREAMED = "candidate", "examples", "streamed"
SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """`Judged` without the model, which is the trainer's."""

    of: dict[str, Any]

    @classmethod
    def without_model(cls, judged: Judged) -> "Verdict":
        """The further targets' likewise."""
        left_out = ("trained", "found", "further")
        of = {f.name: getattr(judged, f.name) for f in fields(judged) if f.name not in left_out}
        return cls({**of, "further": [cls.without_model(each) for each in judged.further]})

    def with_model(self, learned: Learned) -> Judged:
        """What it was made of, with the trainer's model."""
        of = {name: value for name, value in self.of.items() if name != "further"}
        pairs = zip(self.of["further"], learned.further, strict=True)
        further = tuple(verdict.with_model(each) for verdict, each in pairs)
        return Judged(**of, trained=learned.trained, found=learned.found, further=further)


@dataclass(frozen=True, slots=True)
class Served:
    """folder: of the candidate's version, below the artifact. rows: that it answered for; lowest, highest: their p."""

    folder: str
    rows: int
    lowest: float
    highest: float


def carriers(name: str, work: Work) -> Carriers:
    """See above."""
    plan = work.plan

    def rows(target: int) -> Examples:
        prepared: Prepared = work.values("transform").by_target[target]
        all_labelled = name == "refitter" and plan.config.refit
        return learned_from(prepared.usable if all_labelled else prepared.early, plan.config)

    def network(weights: list[Any]) -> keras.Model:
        plain = {"precision": "float32", "dropout": 0.0, "seed": plan.config.seed}
        built = build_network(plan.spec, plan.config.network.model_copy(update=plain))
        built.set_weights(weights)
        return built

    targets, folders = count(), count()

    def shards(examples: Examples) -> str:
        folder = f"{EXAMPLES}/{next(folders):02d}"
        write_shards(work.folder / folder, examples)
        return folder

    return {
        "layout": Carrier(Layout, lambda _: None, lambda _: work.layout),
        "known": Carrier(Known, lambda _: None, lambda _: work.values("example_gen").known),
        "network": Carrier(keras.Model, lambda model: model.get_weights(), network),
        # One a target, in the order of the spec's.
        "fitted": Carrier(
            Fitted, lambda _: next(targets), lambda target: Fitted(plan.spec, rows(target), plan.config.seed)
        ),
        "examples": Carrier(Examples, shards, lambda folder: read_shards(work.folder / folder)),
    }


def transform(work: Work) -> Prepared:
    """Raises SpecError: the log does not fit its schema, or is too short."""
    errors = [each for each in work.values("example_validator") if each.severity == "error"]
    if errors:
        more = f"; and {len(errors) - SHOWN_MAX} more" if len(errors) > SHOWN_MAX else ""
        raise SpecError(
            "the log does not fit its schema: " + "; ".join(map(str, errors[:SHOWN_MAX])) + more,
            hint="; ".join(dict.fromkeys(each.advice for each in errors[:SHOWN_MAX])),
        )
    with work.progress.of("replaying history into examples", 10) as share:
        known, config = work.values("example_gen").known, work.plan.config
        prepared = prepare(
            work.layout, known, config, share, work.plan.engine, work.folder / EXAMPLES / STREAMED
        )
    return replace(prepared, streamed=None)  # where that lies is the artifact's to say


def trainer(work: Work) -> Learned:
    """Raises SpecError (a slice that cannot carry its task), ModelRefused (it diverged)."""
    prepared = _prepared(work)
    check_slices(prepared)
    return learn(prepared, work.plan.config, work.progress)


def evaluator(work: Work) -> Verdict:
    """What it is worth, what speaks against it; `evaluation.json` for scripts, a page of embeddings where curves are
    asked for. It refuses nothing: the next does."""
    learned: Learned = work.values("trainer")
    prepared: Prepared = work.values("transform")
    if (log_dir := work.plan.config.log_dir) is not None:
        if work.plan.out.resolve() in (log_dir.resolve(), *log_dir.resolve().parents):
            raise SpecError(
                f"curves are asked for in {log_dir}, which is published",
                hint="give another folder: states are data",
            )
        rows = prepared.test.take(prepared.test.snapshot)
        project(log_dir, work.plan.spec, learned.trained.fit.network, rows, work.plan.config.seed)
    judged = judge_learned(prepared, learned, work.plan.config, work.progress)
    said = {
        **judged.evaluation.as_json(), "refusals": [str(each) for each in judged.refusals],
        "cautions": judged.all_cautions(work.plan.spec.target_names),
        "moments": [{"moment": part.name, **part.as_json()} for part in judged.moments],
    }  # fmt: skip
    _write(work.folder / EVALUATION, said)
    return Verdict.without_model(judged)


def refitter(work: Work) -> Finished:
    """The gate, and what follows it. Raises ModelRefused."""
    judged = _judged(work)
    check_gate(judged.refusals, work.plan.spec.name, force=work.plan.force)
    finished = finish(_prepared(work), judged, work.plan.config, work.progress)
    _write(work.folder / REPORT, finished.report.as_json())
    return finished


def infra_validator(work: Work) -> Served:
    """Raises ModelError: it cannot be written, or what was written does not load, or does not answer."""
    prepared: Prepared = work.values("transform")
    finished: Finished = work.values("refitter")
    with work.progress.of("writing the version", 1):
        path = write_version(
            work.folder / CANDIDATE, prepared, _judged(work), finished, work.plan.config, work.created
        )
    with work.progress.of("loading it as a worker does", 1):
        runtime.hush()  # a training has let absl speak again
        scorer = Scorer.load(path, work.layout, whole=False)
        records, as_of = made_up(work.layout)
        p = scorer.score(records, as_of)
        reasons = scorer.explain(records, as_of)
    if not (np.isfinite(p).all() and ((p >= 0) & (p <= 1)).all() and np.isfinite(reasons.packed).all()):
        raise ModelRefused(
            f"model {work.plan.spec.name} is not published: loaded again it answers made-up records with no numbers",
            hint="does the training know absurd values? `ebbtide spec check` shows them",
        )
    return Served(path.relative_to(work.folder).as_posix(), len(p), float(p.min()), float(p.max()))


def pusher(work: Work) -> str:
    """The published version's folder. Raises ModelUnwritable; nothing half-written is left visible."""
    candidate: Served = work.values("infra_validator")
    with work.progress.of("publishing", work.progress.left):
        path = push(work.folder_of("infra_validator") / candidate.folder, work.plan.out)
    _write(work.folder / PUSHED, {"path": str(path), "version": int(path.name)})
    return str(path)


def _prepared(work: Work) -> Prepared:
    """Transform's value, with what networks stream from its artifact. Raises SpecError: a shard is damaged."""
    prepared: Prepared = work.values("transform")
    if not work.plan.config.stream_rows_max:
        return prepared
    return replace(prepared, streamed=Shards(work.folder_of("transform") / EXAMPLES / STREAMED))


def _judged(work: Work) -> Judged:
    verdict: Verdict = work.values("evaluator")
    return verdict.with_model(work.values("trainer"))


def _write(path: Path, figures: dict[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
