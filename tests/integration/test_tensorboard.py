"""What a training leaves for TensorBoard, read back through TensorBoard's own HTTP interface."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.examples.dataset import History, draw
from ebbtide.model.examples.examples import Examples
from ebbtide.model.factory.plan import Plan, Work
from ebbtide.model.fitting.board import EMBEDDINGS, project
from ebbtide.model.fitting.fit import Fit, Trainer, logits
from tests.integration.test_train import CONFIG, KNOWN_UNTIL, demo_spec, simulated
from tests.support.servers.tensorboard import Ask, tensorboard

SPEC = demo_spec()


@pytest.fixture(scope="module")
def rows() -> Examples:
    return draw(History(Layout(SPEC), simulated(demo_spec()), KNOWN_UNTIL), examples_max=3_000).usable()


@pytest.fixture(scope="module")
def trained(rows: Examples, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fit, Path]:
    folder = tmp_path_factory.mktemp("board")
    odd = rows.customer % 2 == 1
    config = CONFIG.model_copy(update={"log_dir": folder})
    found = Trainer(SPEC, config, int((~odd).sum())).fit(
        rows.take(~odd), 2, watched=rows.take(odd), run="fold 1"
    )
    project(folder, SPEC, found.network, rows)
    return found, folder


@pytest.fixture(scope="module")
def ask(trained: tuple[Fit, Path]) -> Iterator[Ask]:
    with tensorboard(trained[1], "fold 1") as asked:
        yield asked


def test_curves_are_those_of_the_training(trained: tuple[Fit, Path], ask: Ask) -> None:
    loss = ask("plugin/scalars/scalars", run="fold 1", tag="loss")
    assert [step for _, step, _ in loss] == [1, 2]
    assert [value for _, _, value in loss] == pytest.approx(trained[0].loss)
    assert {"validation", "auroc", "learning_rate"} <= set(ask("plugin/scalars/tags")["fold 1"])


def test_every_weight_and_its_gradient_has_a_histogram(trained: tuple[Fit, Path], ask: Ask) -> None:
    tags = set(ask("plugin/histograms/tags")["fold 1"])
    for weight in trained[0].network.trainable_variables:
        assert {f"weights/{weight.path}", f"gradients/{weight.path}"} <= tags, weight.path
    wide = next(tag for tag in tags if re.match(r"weights/.*wide/kernel", tag))
    points = ask("plugin/histograms/histograms", run="fold 1", tag=wide)
    assert [step for _, step, _ in points] == [0, 1, 2], "before the first epoch and after each"
    head = trained[0].network.get_layer("head").get_layer("wide")
    assert sum(count for _, _, count in points[0][2]) == np.asarray(head.kernel).size
    moved = [buckets for _, _, buckets in points]
    assert moved[0] != moved[2], "it was trained"


def test_gradients_are_those_of_the_loss(trained: tuple[Fit, Path], rows: Examples, ask: Ask) -> None:
    """The bias of the last layer: its gradient is the weighted mean of p less the outcome, in numpy."""
    tag = next(t for t in ask("plugin/histograms/tags")["fold 1"] if re.match(r"gradients/.*deep/bias", t))
    ((left, right, _), *_) = [
        b for b in ask("plugin/histograms/histograms", run="fold 1", tag=tag)[-1][2] if b[2]
    ]
    probe = rows.take(rows.customer % 2 == 0).take(np.arange(1_024))
    p = 1 / (1 + np.exp(-logits(trained[0].network, probe.inputs).astype(np.float64)))
    assert left - 1e-4 <= float((probe.weights() * (p - probe.churned)).mean()) <= right + 1e-4


def test_the_graph_and_a_trace_of_our_steps_are_there(trained: tuple[Fit, Path], ask: Ask) -> None:
    assert "MatMul" in ask("plugin/graphs/graph", run="fold 1", conceptual="false")
    (trace,) = (trained[1] / "fold 1" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert b"MatMul" in trace.read_bytes()


def test_embeddings_are_shown_without_ids(trained: tuple[Fit, Path], rows: Examples, ask: Ask) -> None:
    info = ask("plugin/projector/info", run=".")
    assert [each["tensorName"] for each in info["embeddings"]] == ["kinds", "states"]
    labels = ask("plugin/projector/metadata", run=".", name="kinds").split()
    assert labels == ["(none)", *(kind.name for kind in SPEC.kinds)]
    head, *outcomes = ask("plugin/projector/metadata", run=".", name="states").splitlines()
    assert head.split("\t") == ["outcome", "days of silence"]
    assert {line.split("\t")[0] for line in outcomes} == {"churned", "stayed"} and len(outcomes) == 2_000
    text = "".join(path.read_text() for path in (trained[1] / EMBEDDINGS).iterdir())
    assert not any(customer in text for customer in simulated(demo_spec()).customers)


def test_a_published_folder_holds_no_states(rows: Examples, tmp_path: Path) -> None:
    from ebbtide.model.factory.models import evaluator
    from ebbtide.model.training.progress import Stages
    from tests.integration.test_train import CREATED

    config = CONFIG.model_copy(update={"log_dir": tmp_path / "models" / "shop" / "curves"})
    plan = Plan(SPEC, ("x",), (), tmp_path / "models", config)
    work = Work(plan, lambda _: None, lambda _: tmp_path, tmp_path, Stages(), CREATED)
    with pytest.raises(SpecError, match="which is published"):
        evaluator(work)
