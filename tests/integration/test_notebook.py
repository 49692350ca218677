"""The names that a notebook uses, as a notebook uses them: nothing of ours but `ebbtide` is imported here."""

import ast
import csv
import operator
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import ebbtide

SPEC = """
name: corner
horizon: 7d
memory: 60d
kinds:
  - {name: visit}
  - {name: purchase, aggregate: [sum]}
windows: {7d: 7}
sequence: {length: 4}
"""
START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ebbtide.Spec:
    path = tmp_path_factory.mktemp("spec") / "spec.yaml"
    path.write_text(SPEC, encoding="utf-8")
    return ebbtide.load_spec(path)


@pytest.fixture(scope="module")
def events() -> list[dict[str, object]]:
    """Two hundred customers who come every other day, and stop one after the other over sixty days."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for customer in range(200):
        for day in range(0, int(rng.integers(2, 60)), 2):
            at = START + timedelta(days=day, seconds=int(rng.integers(0, 86_400)))
            kind = "purchase" if rng.random() < 0.2 else "visit"
            value = round(float(rng.lognormal(3, 1)), 2) if kind == "purchase" else None
            rows.append({"user_id": f"c{customer}", "type": kind, "ts": at.isoformat(), "value": value})
    return rows


def test_importing_it_loads_neither_tensorflow_nor_pyarrow() -> None:
    code = (
        "import sys, ebbtide; heavy = {'tensorflow', 'keras', 'pyarrow', 'numba', 'sklearn'} & set(sys.modules); "
        "assert not heavy, heavy; assert 'train' in dir(ebbtide); ebbtide.load_spec; "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(ebbtide.__file__).parents[1])


def test_the_type_checker_is_told_the_same_names() -> None:
    tree = ast.parse(Path(ebbtide.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    told = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {name: (home, ebbtide._RENAMED.get(name, name)) for name, home in ebbtide._HOMES.items()}
    assert told == homes
    assert sorted(told) == ebbtide.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        operator.attrgetter("nothing")(ebbtide)


def test_a_table_folds_as_its_file_does(
    spec: ebbtide.Spec, events: list[dict[str, object]], tmp_path: Path
) -> None:
    path = tmp_path / "events.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["user_id", "type", "ts", "value"])
        writer.writeheader()
        writer.writerows(events)
    date = START + timedelta(days=30)
    log = ebbtide.read_log(path, spec)
    of_file = ebbtide.fold_log(log, spec, snapshots=[date])
    again = ebbtide.fold_log(log.to_arrow(), spec, snapshots=[date])
    assert again.points.rows.tobytes() == of_file.points.rows.tobytes()
    of_table = ebbtide.fold_log(pa.Table.from_pylist(events), spec, snapshots=[date])
    assert of_table.customers == of_file.customers
    assert of_table.points.rows.tobytes() == of_file.points.rows.tobytes()
    assert of_table.rows.tobytes() == of_file.rows.tobytes()
    assert of_file.rows["activity_count"].sum() == len(events)
    snapshot = of_file.points.as_of == round(date.timestamp() * 1000)
    assert 50 < snapshot.sum() <= 200
    with pytest.raises(ValueError, match="no time zone"):
        ebbtide.fold_log(of_file.events, spec, until=datetime(2024, 1, 1))  # noqa: DTZ001 - what must be refused


def test_a_model_is_trained_scored_and_judged(
    spec: ebbtide.Spec, events: list[dict[str, object]], tmp_path: Path
) -> None:
    folded = ebbtide.fold_log(pa.Table.from_pylist(events), spec)
    config = ebbtide.TrainConfig(examples_max=2_000, epochs_max=1, bootstrap=20, refit=False)
    published = ebbtide.train(folded.events, spec, tmp_path, created=START, config=config)
    assert isinstance(published, ebbtide.Published)
    assert 0.5 < published.report.evaluation.values["auroc"]["model"] <= 1
    scorer = ebbtide.Scorer.load(published.path, folded.layout, whole=False)
    asked = folded.points.take(folded.points.scored)
    p = scorer.score(asked.rows[:500], asked.as_of[:500])
    assert p.shape == (500,)
    judged = ebbtide.evaluate(
        {"model": p, "coin": p * 0}, np.arange(500) % 2, asked.customer[:500], bootstrap=20
    )
    assert judged.values["auroc"]["coin"] == 0.5
