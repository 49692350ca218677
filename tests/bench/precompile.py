"""XLA's programs of the bench's model, as a worker that served it before leaves them: `python -m tests.bench.precompile
DIR` fills DIR/compiled.

What the bench measures is a service at work, not XLA's compiler, which takes a core for half a minute after a first
start (`bench_start` tells what that costs). In a process of its own, as a worker does it, because names in XLA's
cache are numbered as functions are traced.
"""

import sys
from pathlib import Path

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.serving import xla_cache
from ebbtide.ops.config.child import keep_compiled
from ebbtide.ops.tensorflow import load_tensorflow
from tests.bench.traffic import SPEC


def main(directory: Path) -> None:
    folder = xla_cache.prepare(directory / "compiled")
    if folder is None:
        raise SystemExit("compiled programs cannot be kept")
    keep_compiled(folder)
    load_tensorflow()
    from ebbtide.model.serving.runtime import configure
    from ebbtide.model.serving.slot import ScorerSlot

    configure()
    slot = ScorerSlot(directory / "models" / SPEC.name, Layout(SPEC), lambda _: None)
    slot.widen()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
