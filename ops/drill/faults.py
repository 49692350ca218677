"""What can be broken: each fault in words, how it begins and how it is mended. Blocking; called beside the load."""

import signal
from collections.abc import Callable
from typing import NamedTuple

from ebbtide.ops.drill.scene import Scene
from ebbtide.ops.errors import StackError
from ebbtide.ops.stack.server import Server


class Fault(NamedTuple):
    """words: what happens. expect: what an operator should see, and what is promised. during_s: how long it lasts, at
    least; workers, static: of the scene."""

    words: str
    expect: str
    cause: Callable[[Scene], object]
    mend: Callable[[Scene], object]
    during_s: float = 10.0
    workers: int = 2
    static: bool = False


def _kill_worker(scene: Scene) -> None:
    scene.workers[0].kill()


def _hang_redis(scene: Scene) -> None:
    _valkey(scene).signal(signal.SIGSTOP)


def _wake_redis(scene: Scene) -> None:
    _valkey(scene).signal(signal.SIGCONT)


def _valkey(scene: Scene) -> Server:
    server = scene.stack.valkey.server
    if server is None:
        raise StackError("the drill's Valkey does not run")
    return server


def _publish_bad_model(scene: Scene) -> None:
    version = scene.models / "999"
    version.mkdir()
    (version / "manifest.json").write_text("{}")


def _take_back_model(scene: Scene) -> None:
    (scene.models / "999/manifest.json").unlink()
    (scene.models / "999").rmdir()


FAULTS = {
    "kill-worker": Fault(
        "one of two workers is killed (SIGKILL)",
        "the other one takes its partitions over after the session's timeout; an alert may come twice, none is lost",
        _kill_worker, lambda scene: scene.add_worker(),
    ),
    "hang-redis": Fault(
        "Redis hangs (SIGSTOP)",
        "/readyz names Redis, partitions wait; nothing is lost, and all is caught up afterwards",
        _hang_redis, _wake_redis,
    ),
    "kill-redis": Fault(
        "Redis is killed and comes back with its file",
        "/readyz names Redis; what its file had lost is made again in silence, so nothing is said twice",
        lambda scene: scene.stack.valkey.kill(), lambda scene: scene.stack.valkey.restart(),
    ),
    "kill-broker": Fault(
        "the only broker is killed and comes back",
        "/readyz names Kafka; the load waits, too, and its latency says so",
        lambda scene: scene.stack.kafka.nodes[0].kill(), lambda scene: scene.stack.kafka.nodes[0].restart(),
    ),
    "bad-model": Fault(
        "a version that is no model is published",
        "it is refused by name, ebbtide_model_versions_refused rises, the version in service goes on",
        _publish_bad_model, _take_back_model,
    ),
    "roll": Fault(
        "three workers are replaced one after the other (SIGTERM)",
        "each leaves the group, and its partitions move at once; nothing is lost",
        Scene.roll, lambda _: None, during_s=60.0, workers=3,
    ),
    "roll-static": Fault(
        "three static members are replaced one after the other (SIGTERM)",
        "no partition moves: each waits for its own worker, as long as that takes to start",
        Scene.roll, lambda _: None, during_s=60.0, workers=3, static=True,
    ),
    "hand-over": Fault(
        "three static members are replaced, each by a successor of its name that starts beside it",
        "no partition moves, and none waits for a start: the successor takes the place when it can score",
        Scene.hand_over, lambda _: None, during_s=60.0, workers=3, static=True,
    ),
}  # fmt: skip
