"""What a row costs in the scorer: `python -m tests.bench.bench_scorer [--length 64]`.

Prints, for each padded size, seconds to compile, milliseconds a dispatch (median; 10th to 95th percentile, since on a
busy machine the 10th is the scorer's own), rows a second, and the share of rows whose bits differ from those at 8 rows:

    served    the scorer as it is: XLA, one copy in, blocks of at most 32 rows
    one piece XLA without blocks: each size is one matrix product high
    by field  XLA, one tensor a record field
    plain     TensorFlow without XLA, one tensor a field: what calling the SavedModel costs

for one and for two threads, each in a process of its own, because TensorFlow freezes its threads when it starts.
`--model DIR` measures a published model instead of one of random weights.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Sequence, Spec
from ebbtide.model.graph.served import input_specs
from ebbtide.model.serving import runtime
from ebbtide.model.serving.manifest import read_manifest
from ebbtide.model.serving.program import Program
from ebbtide.model.serving.scorer import Scorer
from tests.support.seams.models import SPEC, Sample, publish, sample

ROWS = 2_048
ROUNDS = 40
Score = Callable[[Sample], NDArray[np.float32]]


def variants(scorer: Scorer) -> dict[str, Callable[[int], Score]]:
    """Name -> size -> a function that scores exactly that many rows."""
    signature, layout = scorer._loaded.signatures["score"], scorer.layout

    def one_piece(size: int) -> Score:
        program = Program(signature, layout, size, scorer.device, block=size)
        return lambda data: program(data.rows.view(np.uint8).reshape(size, -1), data.as_of)["probability"]

    def by_field(size: int, *, xla: bool) -> Score:
        traced = tf.function(signature, jit_compile=xla)
        traced = traced.get_concrete_function(**input_specs(layout, size))

        def score(data: Sample) -> NDArray[np.float32]:
            record: dict[str, Any] = {name: tf.constant(data.rows[name]) for name in layout.model_fields}
            p: NDArray[np.float32] = traced(**record, as_of=tf.constant(data.as_of))["probability"].numpy()
            return p

        return score

    return {
        "served": lambda _: lambda data: scorer.score(data.rows, data.as_of),
        "one piece": one_piece,
        "by field": lambda size: by_field(size, xla=True),
        "plain": lambda size: by_field(size, xla=False),
    }


def measure(folder: Path, spec: Spec, threads: int) -> None:
    """Print the table for one number of threads."""
    device = runtime.configure(threads)
    start = time.perf_counter()
    scorer = Scorer.load(folder, Layout(spec), whole=False, threads=threads)
    loaded = time.perf_counter()
    while scorer.missing:
        scorer = scorer.wider()
    print(
        f"\n{threads} thread(s), {device}, {scorer.layout.itemsize} bytes a record, {spec.sequence.length} entries"
    )
    print(
        f"load, in one size {loaded - start:.1f} s, the others {time.perf_counter() - loaded:.1f} s: {scorer.sizes}"
    )
    print(f"{'':10} {'size':>5} {'compile s':>10} {'ms a dispatch':>24} {'rows/s':>9} {'bits differ':>12}")
    data = sample(ROWS, spec=spec, seed=2)
    for name, make in variants(scorer).items():
        first: NDArray[np.float32] | None = None
        for size in scorer.sizes:
            pieces = [data.of(slice(at, at + size)) for at in range(0, ROWS, size)]
            start = time.perf_counter()
            score = make(size)
            score(pieces[0])
            compiled = time.perf_counter() - start
            p = np.concatenate([score(piece) for piece in pieces])
            first = p if first is None else first
            spent = []
            for turn in range(max(ROUNDS, ROWS // size)):
                start = time.perf_counter()
                score(pieces[turn % len(pieces)])
                spent.append(1000 * (time.perf_counter() - start))
            low, median, high = np.quantile(spent, [0.1, 0.5, 0.95])
            timed = f"{median:.2f} ({low:.2f} to {high:.2f})"
            told = "warm" if name == "served" else f"{compiled:.2f}"
            differ = f"{np.mean(p != first):.1%}"
            print(
                f"{name:10} {size:5} {told:>10} {timed:>24} {1000 * size / median:9,.0f} {differ:>12}",
                flush=True,
            )
    few = data.of(slice(0, 8))
    start = time.perf_counter()
    for _ in range(ROUNDS):
        scorer.explain(few.rows, few.as_of)
    print(f"explain, 8 rows: {1000 * (time.perf_counter() - start) / ROUNDS:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=32, help="entries of the sequence")
    parser.add_argument("--model", type=Path, help="a published version's folder")
    parser.add_argument("--threads", type=int, help="measure this number only, in this process")
    asked = parser.parse_args()
    if asked.threads and asked.model:
        measure(asked.model, read_manifest(asked.model).parsed_spec(), asked.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        spec = SPEC.model_copy(update={"sequence": Sequence(length=asked.length)})
        model = asked.model or publish(Path(folder), spec=spec)
        for threads in (1, 2):
            again = [
                sys.executable,
                "-m",
                "tests.bench.bench_scorer",
                "--model",
                str(model),
                "--threads",
                str(threads),
            ]
            subprocess.run(again, check=True)


if __name__ == "__main__":
    main()
