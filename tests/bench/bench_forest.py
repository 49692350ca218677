"""What the forest and the sequence cost a scored row: one graph with and without each, in turn, on the same rows.

    python -m tests.bench.bench_forest [--rows 32] [--seconds 4]

Random weights: what is computed does not depend on them. The graphs take turns, and of each the median of the turns is
told, so that a busy machine is busy for all of them.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.graph.network import build_network
from ebbtide.model.graph.sizes import NetworkConfig
from ebbtide.model.serving.artifact import export
from ebbtide.model.serving.scorer import Scorer
from tests.support.seams.models import FACTS, forest_of, sample

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {
    "network": (True, False),
    "network and forest": (True, True),
    "without sequence": (False, False),
    "without sequence, and forest": (False, True),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each")
    parser.add_argument("--spec", type=Path, default=ROOT / "ops" / "specs" / "complete_journey.yaml")
    asked = parser.parse_args()
    spec = load_spec(asked.spec)
    layout, data = Layout(spec), sample(asked.rows, spec=spec)
    with tempfile.TemporaryDirectory() as folder:
        scorers = {}
        for name, (sequence, forest) in VARIANTS.items():
            network = build_network(spec, NetworkConfig(sequence=sequence))
            path = export(
                Path(folder) / name, spec, network, Calibrator(), FACTS, (data.rows, data.as_of), sizes=(32,),
                forest=forest_of(spec) if forest else None,
            )  # fmt: skip
            scorers[name] = Scorer.load(path, layout)
        took: dict[str, list[float]] = {name: [] for name in scorers}
        until = perf_counter() + asked.seconds * len(scorers)
        while perf_counter() < until:
            for name, scorer in scorers.items():
                began = perf_counter()
                for _ in range(10):
                    scorer.score(data.rows, data.as_of)
                took[name].append((perf_counter() - began) / 10 / asked.rows * 1e6)
    for name, each in took.items():
        low, high = np.quantile(each, (0.1, 0.9))
        print(
            f"{name:30s} {statistics.median(each):6.1f} µs a row at {asked.rows} rows ({low:.1f} to {high:.1f})"
        )


if __name__ == "__main__":
    main()
