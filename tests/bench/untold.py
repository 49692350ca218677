"""`python -m tests.bench.untold`: `ebbtide worker` as it is, but that nothing is counted. Beside it, the worker's own
metrics show what they cost."""

import asyncio

from ebbtide.model.serving import xla_cache
from ebbtide.ops.config.child import keep_compiled
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.secrets import secrets_of
from ebbtide.ops.observe import logs
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.ops.tensorflow import leave, load_tensorflow
from ebbtide.stream.telemetry import Telemetry


class Untold(Metrics):
    """Is asked at the scrape like the others, and hears nothing of the data path."""

    dispatched = Telemetry.dispatched
    turn_done = Telemetry.turn_done
    in_history = Telemetry.in_history
    paused, resumed = Telemetry.paused, Telemetry.resumed
    timers = Telemetry.timers
    explained = Telemetry.explained
    queued = Telemetry.queued

    def redis_called(self, *_: object) -> None:
        """Not counted."""

    def kafka_called(self, *_: object) -> None:
        """Not counted."""


def main() -> None:
    settings = load_settings(None)
    logs.configure(settings.logs.level, settings.logs.form, secrets_of(settings).values())
    if (folder := xla_cache.prepare(settings.compiled)) is not None:
        keep_compiled(folder)
    load_tensorflow()
    from ebbtide.ops.worker.run import work  # brings TensorFlow, which is loaded quietly above

    asyncio.run(work(settings, Untold()))
    leave()


if __name__ == "__main__":
    main()
