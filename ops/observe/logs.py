"""Structured logs: one JSON object a line, with the fields a person greps for; never a customer's id, never a secret.

The rule for customers is kept by what is passed in: log calls name partitions, offsets, counts and reasons, and put
values into `extra`, never into the message. Secrets are the same, and besides whatever is written passes a filter that
knows them: what a library quotes in an error is not ours to write. A library's message that repeats itself, as each
try of a client during an outage does, is written once in REPEAT_S with a count of those held back; ours never are.
`capture_logs` is public, so that a test reads logs without patching anything.
"""

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
REPEAT_S = 30.0
"""An outage of a minute is three lines of each kind, not four for every try."""
TEMPLATES_MAX = 256
"""Messages remembered at once; the oldest is forgotten first, and may then be written again."""


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, then whatever the call put into `extra`, and the error with its trace."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


@dataclass(slots=True)
class _Seen:
    """A message that was written: when, and how many like it were held back since. `last` is the last of them."""

    written_s: float
    held_back: int = 0
    last: logging.LogRecord | None = None


class Handler(logging.StreamHandler[Any]):
    """Writes records: without `secrets`, and of libraries each message (logger and template) once in `repeat_s`.

    The count of those held back is the field `held_back` of the next one; where none follows, of the last one held
    back itself, written when anything is logged after its time. Time is the records' own.
    """

    def __init__(self, stream: Any, secrets: Iterable[str] = (), repeat_s: float = REPEAT_S) -> None:
        super().__init__(stream)
        self._secrets, self._repeat_s = texts_of(secrets), repeat_s
        self._seen: dict[tuple[str, int, str], _Seen] = {}

    def format(self, record: logging.LogRecord) -> str:
        return hidden(super().format(record), self._secrets)

    def emit(self, record: logging.LogRecord) -> None:
        self._tell_of_those_held_back(record.created)
        if record.name.partition(".")[0] in OURS or self._admits(record):
            super().emit(record)

    def _admits(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.levelno, str(record.msg))
        seen = self._seen.get(key)
        if seen is not None and record.created - seen.written_s < self._repeat_s:
            seen.held_back += 1
            try:  # as text, and without its trace: a record keeps alive whatever its arguments and frames hold
                record.msg, record.args, record.exc_info = record.getMessage(), None, None
            except Exception:  # noqa: BLE001 - as logging does with arguments that do not fit
                self.handleError(record)
                return False
            seen.last = record
            return False
        if len(self._seen) >= TEMPLATES_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen.pop(key, None)
        self._seen[key] = _Seen(record.created)
        return True

    def _tell_of_those_held_back(self, now_s: float) -> None:
        """Write the last of each message whose time is over; those that are not repeated any more are forgotten."""
        for key, seen in list(self._seen.items()):
            if now_s - seen.written_s < self._repeat_s:
                break  # they stand in the order in which they were written
            del self._seen[key]
            if seen.last is not None:
                seen.last.held_back = seen.held_back - 1
                self._seen[key] = _Seen(now_s)
                super().emit(seen.last)


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
    """A line for people, with what `extra` says behind it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        said = super().formatMessage(record)
        return said + (f"  {' '.join(f'{key}={value}' for key, value in extra.items())}" if extra else "")


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
