"""Structured logs: one JSON object a line, with the fields a person greps for; never a customer's id, never a secret.

The rule for customers is kept by what is passed in: log calls name partitions, offsets, counts and reasons, and put
values into `extra`, never into the message. Secrets are the same, and besides whatever is written passes a filter that
knows them: what a library quotes in an error is not ours to write. A library's message that repeats itself, as each
try of a client during an outage does, is written once in REPEAT_S; what we say ourselves is never held back. One record
is one line, or lines that begin with a space: nobody's words can forge another. `capture_logs` is public, so that a
test reads logs without patching anything.
"""

import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from ebbtide.ops.config.secrets import hidden, texts_of

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
OURS = frozenset({"ebbtide", "__main__"})
QUIET = (
    "faust", "mode", "aiokafka", "kafka", "asyncio", "tensorflow", "absl", "numba", "aiohttp", "h5py", "redis",
    "push_response", "urllib3", "matplotlib", "rdkafka",
)  # fmt: skip
"""Libraries that are heard from warnings on, also at debug: below it they log what they send, keys and values."""
# What ends a line or steers a terminal: C0, DEL, C1, and Unicode's two separators.
_ESCAPED = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
REPEAT_S = 30.0
"""An outage of a minute is three lines of each kind, not four for every try."""
TEMPLATES_MAX = 256
"""Messages remembered at once; the oldest is forgotten first, and may then be written again."""


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, then whatever the call put into `extra`; of an error its words, and its trace."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            fields.setdefault("error", repr(record.exc_info[1]))
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class RateLimit(logging.Filter):
    """Lets a library's message (logger, level and template) through once in `repeat_s`, by the records' own times. The
    next that gets through says as `held_back` how many did not."""

    def __init__(self, repeat_s: float = REPEAT_S) -> None:
        super().__init__()
        self._repeat_s = repeat_s
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}  # written when, and held back since

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] in OURS:
            return True
        key = (record.name, record.levelno, str(record.msg))
        written_s, held_back = self._seen.get(key, (-math.inf, 0))
        if record.created - written_s < self._repeat_s:
            self._seen[key] = (written_s, held_back + 1)
            return False
        if held_back:
            record.held_back = held_back
        self._seen.pop(key, None)
        if len(self._seen) >= TEMPLATES_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = (record.created, 0)
        return True


class Handler(logging.StreamHandler[Any]):
    """Writes records without `secrets`, and of libraries' repetitions one in a while."""

    def __init__(self, stream: Any, secrets: Iterable[str] = ()) -> None:
        super().__init__(stream)
        self._secrets = texts_of(secrets)
        self.addFilter(RateLimit())

    def format(self, record: logging.LogRecord) -> str:
        return hidden(super().format(record), self._secrets)


def configure(
    level: str = "info", form: Literal["json", "text"] = "json", secrets: Iterable[str] = ()
) -> None:
    """Send all logs to standard error, without the `secrets`; chatty libraries only from warnings on."""
    handler = Handler(sys.stderr, secrets)
    text = TextFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class TextFormatter(logging.Formatter):
    """A line for people, with what `extra` says behind it; a trace below it, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        said = super().formatMessage(record)
        line = said + (f"  {' '.join(f'{key}={value}' for key, value in extra.items())}" if extra else "")
        return line.translate(_ESCAPED)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {line.translate(_ESCAPED)}" for line in lines)


@contextmanager
def capture_logs(level: int = logging.INFO) -> Iterator[list[logging.LogRecord]]:
    """Every record logged within the block, as a list that grows."""
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler, root = Collector(level), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(min(level, before))
    try:
        yield records
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
