"""What a model weighs and says in each precision: `python -m tests.bench.bench_export [--units 48] [--prune 0 0.8]`.

    cdnow ─fit before the test slice─▶ version ─export─▶ a LiteRT file in each precision ─▶ snapshots of the test slice

Of each file: bytes of the weights and tables, of scales and zero points, of the whole, of the whole gzipped; AUROC on
snapshots of the test slice, which neither the model nor the scales of int8 have seen; the largest difference of a
probability and of a logit from the SavedModel's; milliseconds a row, one at a time, in one thread: the median. The
SavedModel's own are of `score`.

The recipe is given instead of found: so many epochs, half of the logit the forest's. What is measured is what a
precision changes, and the search for a recipe takes longer than all the rest.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.parts.part import Part
from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import load_spec
from ebbtide.model.config import DROPOUT, TrainConfig
from ebbtide.model.examples.dataset import History
from ebbtide.model.examples.known import known_log
from ebbtide.model.examples.made_up import made_up
from ebbtide.model.examples.sample import Wanted, gather, snapshot_dates
from ebbtide.model.exporting.litert import Runner, in_litert, quantised, sizes
from ebbtide.model.exporting.recipes import PRECISIONS
from ebbtide.model.fitting.fit import Trainer
from ebbtide.model.fitting.recipe import Recipe, calibrated_on
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.graph.sizes import NetworkConfig
from ebbtide.model.judging.metrics import Ranking
from ebbtide.model.serving import warmup
from ebbtide.model.serving.artifact import Facts, export
from ebbtide.model.serving.manifest import verify
from ebbtide.model.training.cross_fit import learned_from
from ebbtide.model.training.prepare import Prepared, prepare
from ebbtide.model.training.trained import fitted_by

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT.parent / "shared" / "data" / "cdnow" / "events.csv.gz"
SPEC = ROOT / "ops" / "specs" / "cdnow.yaml"
TIMED = 200
Score = Callable[[Rows, NDArray[np.int64]], dict[str, NDArray[np.float32]]]


def main() -> None:
    """Train, export, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=int, nargs="+", default=[48, 256], help="of the GRU")
    parser.add_argument(
        "--prune", type=float, nargs="+", default=[0.0], help="share of the matrices' weights"
    )
    parser.add_argument("--share", type=float, default=0.5, help="of the logit, the forest's")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--fitted-rows", type=int, default=20_000, help="that the network learns from at most"
    )
    parser.add_argument("--rows", type=int, default=4_000, help="of the test slice, at most")
    parser.add_argument("--log", type=Path, default=LOG, help="cdnow's events.csv.gz")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    asked = parser.parse_args()
    spec = load_spec(SPEC)
    layout = Layout(spec)
    known = known_log(layout, read_log(asked.log, spec).events, None)
    prepared = prepare(layout, known, TrainConfig())
    begin, end = prepared.slices.test
    dates = tuple(date for date in snapshot_dates(spec, known.log, end) if date >= begin)
    points = gather(layout, Part.whole(known.log), Wanted(known.until_ms, dates, 2 * asked.rows, 1)).snapshots
    churned = History(layout, known.log, known.until_ms).examples(points).churned
    told = []
    for units in asked.units:
        for prune in asked.prune:
            config = TrainConfig(
                network=NetworkConfig(units=units, dropout=DROPOUT), prune=prune, epochs_max=asked.epochs,
                network_rows_max=asked.fitted_rows,
            )  # fmt: skip
            with tempfile.TemporaryDirectory(prefix="ebbtide-bench-") as folder:
                path = trained(prepared, config, asked.share, Path(folder))
                rows = list(measured(path, layout, points, churned))
            told.append({"units": units, "prune": prune, "rows": rows})
            show(units, prune, asked.share, len(points), rows)
    if asked.json:
        asked.json.write_text(json.dumps(told))


def trained(prepared: Prepared, config: TrainConfig, share: float, folder: Path) -> Path:
    """A version that has learned from nothing later than the begin of the test slice."""
    spec, rows = prepared.layout.spec, learned_from(prepared.early, config)
    trainer = Trainer(spec, config, len(rows))
    recipe = Recipe(config.epochs_max, 1.0, share, Calibrator(), 0.0, [])
    model = fitted_by(recipe, trainer, rows, Calibrator())
    calibrator = calibrated_on(prepared.calibration, model.raw(prepared.calibration))
    facts = Facts(
        created=datetime.now(UTC),
        enter=0.5,
        exit=0.5,
        alert_rate=0.1,
        data_hash="0" * 64,
        train_config=config,
    )
    return export(
        folder, spec, model.fit.network, calibrator, facts, made_up(prepared.layout, warmup.ROWS_MAX),
        forest=model.forest, share=share,
    )  # fmt: skip


def measured(path: Path, layout: Layout, points: Points, churned: NDArray[Any]) -> Iterator[dict[str, Any]]:
    """The SavedModel, then each precision."""
    loaded = tf.saved_model.load(str(path))

    def saved(rows: Rows, as_of: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        record = {name: tf.constant(rows[name]) for name in layout.model_fields}
        out = loaded.signatures["score"](**record, as_of=tf.constant(as_of))
        return {name: value.numpy() for name, value in out.items()}

    right = saved(points.rows, points.as_of)
    yield {"form": "SavedModel", **said(saved, points, churned, right)}
    plain = in_litert(path, verify(path))
    for precision in PRECISIONS:
        made = quantised(plain, precision, *warmup.read(path, layout))
        yield {
            "form": precision, **sizes(made)._asdict(), **said(Runner(made).score, points, churned, right)
        }  # fmt: skip


def said(
    score: Score, points: Points, churned: NDArray[Any], right: dict[str, NDArray[np.float32]]
) -> dict[str, float]:
    """What one form says of the test slice, and how long it takes for a row."""
    found, spent = score(points.rows, points.as_of), []
    for i in range(min(TIMED, len(points))):
        began = time.perf_counter()
        score(points.rows[i : i + 1], points.as_of[i : i + 1])
        spent.append(time.perf_counter() - began)
    return {
        "auroc": Ranking(found["logit"].astype(np.float64), churned).auroc(),
        "p_off": float(np.abs(found["probability"] - right["probability"]).max()),
        "logit_off": float(np.abs(found["logit"] - right["logit"]).max()),
        "ms_a_row": 1000 * float(np.median(spent)),
    }


def show(units: int, prune: float, share: float, snapshots: int, rows: list[dict[str, Any]]) -> None:
    """The table of one network."""
    print(f"\ncdnow, {units} units, {prune:.0%} pruned, {share:.0%} forest; {snapshots:,} snapshots")
    heads = ("weights", "scales", "file", "gzipped"), ("AUROC", "p off", "logit off", "ms a row")
    print(
        f"{'':14}" + "".join(f"{head:>12}" for head in heads[0]) + "".join(f"{head:>10}" for head in heads[1])
    )
    for row in rows:
        bytes_ = "".join(f"{row[key]:>12,}" if key in row else f"{'-':>12}" for key in heads[0])
        print(
            f"{row['form']:14}{bytes_}{row['auroc']:10.4f}{row['p_off']:10.1e}{row['logit_off']:10.1e}"
            f"{row['ms_a_row']:10.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
