"""What forest, sequence, survival and further heads cost a scored row: one graph with each and without, same rows.

    python -m tests.bench.bench_forest [--rows 32] [--seconds 4]

Random weights: what is computed does not depend on them. The graphs take turns, and of each the median of the turns is
told, so that a busy machine is busy for all of them.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, load_spec
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.graph.hazard import Hazard
from ebbtide.model.graph.head import Head
from ebbtide.model.graph.network import build_network
from ebbtide.model.graph.sizes import NetworkConfig
from ebbtide.model.graph.standard import logs
from ebbtide.model.serving.artifact import export
from ebbtide.model.serving.scorer import Scorer
from tests.support.seams.models import FACTS, forest_of, sample

ROOT = Path(__file__).resolve().parents[2]


class Variant(NamedTuple):
    """Of a graph: with what of all that it may have; `heads`, with a forest each, beside the first one."""

    sequence: bool = True
    forest: bool = True
    survival: bool = False
    heads: int = 0


VARIANTS = {
    "network": Variant(forest=False),
    "network and forest": Variant(),
    "… and survival": Variant(survival=True),
    "… and a further head": Variant(survival=True, heads=1),
    "… and three further heads": Variant(survival=True, heads=3),
    "without sequence": Variant(sequence=False, forest=False),
    "without sequence, and forest": Variant(sequence=False),
}


def hazard_of(spec: Spec) -> Hazard:
    """Of random numbers."""
    horizons, columns = spec.horizons_ms, len(logs(spec))
    kernel = np.random.default_rng(0).normal(0.0, 0.1, (columns + 1, len(horizons) - 1)).astype(np.float32)
    return Hazard(
        horizons, horizons.index(spec.horizon_ms), True, kernel, np.zeros(len(horizons) - 1, np.float32)
    )


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
        for n, (name, (sequence, forest, survival, heads)) in enumerate(VARIANTS.items()):
            network = build_network(spec, NetworkConfig(sequence=sequence))
            hazard = hazard_of(spec) if survival else None
            path = export(
                Path(folder) / str(n), spec, network, Calibrator(), FACTS, (data.rows, data.as_of), sizes=(32,),
                forest=forest_of(spec) if forest else None, hazard=hazard,
                further=[Head(network, Calibrator(), forest_of(spec), 0.4, hazard)] * heads,
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
