"""A small factory: the simulator's customers in files, and a pipeline that takes seconds."""

from pathlib import Path
from typing import Any

import yaml

from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.ops.demo.shop.behaviour import Scenario, simulate
from ebbtide.ops.demo.shop.events import write_csv
from ebbtide.ops.pipeline.config import load_config
from ebbtide.ops.pipeline.run import Runner
from ebbtide.ops.pipeline.store import Store
from ebbtide.stream.clock import SystemClock

SPEC = Path(__file__).resolve().parents[2] / "ops" / "specs" / "demo.yaml"
START = 1_700_000_000_000
KNOWN_UNTIL = START + 70 * DAY_MS
TRAIN: dict[str, Any] = {
    "examples_max": 3_000, "epochs_max": 1, "batch": 128, "bootstrap": 20,
    "network": {"units": 4, "embed": 2, "dense": [4]},
}  # fmt: skip


def runner(file: Path) -> Runner:
    """Of the pipeline that a file configures."""
    config = load_config(file)
    return Runner(Store(config.runs), config.plan(), SystemClock())


def write_events(folder: Path, files: int = 3, seed: int = 5, customers: int = 400) -> None:
    """The events of some customers in so many files, one day partition each."""
    sim = simulate(Scenario(seed=seed, customers=customers, start_ms=START, days=75.0, steady_days=30.0))
    for number in range(files):
        part = folder / f"part={number}"
        part.mkdir(parents=True)
        begin, end = (len(sim) * at // files for at in (number, number + 1))
        write_csv(sim, part / "events.csv.gz", slice(begin, end))


def write_spec(folder: Path, *targets: dict[str, Any]) -> Path:
    """The demo's spec with these targets."""
    path = folder / "spec.yaml"
    spec = yaml.safe_load(SPEC.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**spec, "targets": list(targets)}), encoding="utf-8")
    return path


def write_config(folder: Path, **changes: Any) -> Path:
    """A configuration beside `events/`; `changes` are its keys."""
    said = {
        "events": "events", "spec": str(SPEC), "out": "models", "runs": "runs", "name": "shop", "horizon": "10d",
        "labels_until": "2024-01-23", "force": True, "train": TRAIN, **changes,
    }  # fmt: skip
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    return path
