"""Several processes of this machine as one cluster: all end together, or are started again together.

    N processes, each with its TF_CONFIG ─▶ all end with 0: done
                                         ─▶ one was killed: end the others, start all again; they go on at their backup
                                         ─▶ one failed by itself: end the others; it would fail again

A step waits for all of them, so of a cluster that has lost one nobody goes on; and one that comes back alone finds the
others' ports, not their state. So the cluster is what is started again, and never a process.
"""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence

from ebbtide.ops.stack.server import free_ports, tied
from ebbtide.stream.clock import SystemClock

RESTARTS_MAX = 3
LOOK_S = 0.2
SETTLE_S = 2.0
"""Who loses a peer fails of that by itself, a moment later or earlier than the peer is seen to be gone."""
END_S = 10.0

Started = Callable[[Sequence[subprocess.Popen[bytes]]], None]


def run_cluster(
    command: Sequence[str],
    workers: int,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    started: Started = lambda _: None,
    clock: SystemClock | None = None,
) -> int:
    """Run `command` as each of `workers` processes. Returns 0, or the exit code of the one that failed; negative when
    one was killed once more than RESTARTS_MAX times. `started` hears of the processes each time."""
    clock = clock or SystemClock()
    for attempt in range(RESTARTS_MAX + 1):
        processes = _start(command, workers, environment)
        started(processes)
        try:
            code = _ended(processes, clock)
        finally:
            _end(processes)
        if code >= 0:
            return code
        if attempt < RESTARTS_MAX:
            say(f"a worker was killed (signal {-code}): all are started again, and go on at their last epoch")
    return code


def _start(
    command: Sequence[str], workers: int, environment: Mapping[str, str]
) -> list[subprocess.Popen[bytes]]:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    started: list[subprocess.Popen[bytes]] = []
    for index in range(workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        started.append(
            subprocess.Popen(
                tied(command), stdin=subprocess.DEVNULL, env={**environment, "TF_CONFIG": json.dumps(task)}
            )
        )
    return started


def _ended(processes: Sequence[subprocess.Popen[bytes]], clock: SystemClock) -> int:
    """0 when all ended well; else the first that did not, one that was killed before one that failed of it."""
    while True:
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes):
            return 0
        if any(codes):
            deadline_s = clock.monotonic_s() + SETTLE_S
            while clock.monotonic_s() < deadline_s and not any(
                code is not None and code < 0 for code in codes
            ):
                clock.sleep_s(LOOK_S)
                codes = [process.poll() for process in processes]
            return min(code for code in codes if code)
        clock.sleep_s(LOOK_S)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait(END_S)
