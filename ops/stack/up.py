"""`ebbtide stack up`: keep the local stack running in the foreground and say where it is.

Knows what is printed and when it ends; refuses to know how a server is started. What it prints on standard output
can be pasted into a shell or sourced from a file; what it tells a person besides is a comment in that shell.
Invariant: it returns only when every server has ended.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

from ebbtide.ops.stack.jars import REGISTRY
from ebbtide.ops.stack.kafka import HEAP_MB
from ebbtide.ops.stack.local import LocalStack
from ebbtide.ops.stack.server import Progress, silent

CHECK_S = 0.5  # how soon a server that ended by itself is noticed
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exports(kafka_url: str, redis_url: str) -> list[str]:
    """Shell lines after which every `ebbtide` command uses these servers."""
    return [f"export EBBTIDE_KAFKA_URL={kafka_url}", f"export EBBTIDE_REDIS_URL={redis_url}"]


def up(
    *,
    keep: bool = False,
    directory: Path | None = None,
    brokers: int = 1,
    heap_mb: int = HEAP_MB,
    cache: Path | None = None,
    registry: str = REGISTRY,
    write: Callable[[str], None] | None = None,
    progress: Progress = silent,
) -> None:
    """Start the stack, print its URLs, keep it until Ctrl-C, SIGTERM or a closed terminal, then stop it.

    `keep` leaves data and logs where they are and says where; `directory` goes on with them. `write` gets each line
    (standard output unless given), `progress` whatever takes a while. A second Ctrl-C cuts the stopping short.
    For the main thread, as it takes those signals. Raises StackError, also when a server ends by itself.
    """
    write = write or _print
    stack = LocalStack(
        keep=keep,
        directory=directory,
        brokers=brokers,
        heap_mb=heap_mb,
        cache=cache,
        registry=registry,
        progress=progress,
    )
    try:
        stack.start()
        with _first_of(ENDS) as asked:
            kept = "kept" if keep or directory is not None else "removed"
            for line in exports(stack.kafka_url, stack.redis_url):
                write(line)
            write(f"# running until Ctrl-C; data in {stack.directory}, {kept} at the end")
            write("# no password: whoever has an account on this machine can read and write there")
            while not _came(asked, CHECK_S):
                stack.check()
        progress("stopping Apache Kafka and Valkey")
    finally:
        stack.stop()


@contextmanager
def _first_of(signals: tuple[signal.Signals, ...]) -> Iterator[SimpleQueue[int]]:
    """A queue that gets the first of these signals; from then on, they do what they did before.

    A SimpleQueue because it may be put to from a signal handler while the same thread waits in it; an Event may not.
    """
    asked: SimpleQueue[int] = SimpleQueue()
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def take(number: int, _frame: object) -> None:
        restore()
        asked.put(number)

    for number in signals:
        signal.signal(number, take)
    try:
        yield asked
    finally:
        restore()


def _came(asked: SimpleQueue[int], timeout_s: float) -> bool:
    try:
        asked.get(timeout=timeout_s)
    except Empty:
        return False
    return True


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
