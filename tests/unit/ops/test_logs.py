"""Logs: which libraries are heard, what is said once in a while only, and that no secret comes through."""

import io
import json
import logging
import subprocess
import sys

from ebbtide.ops.observe.logs import REPEAT_S, TEMPLATES_MAX, Handler, JsonFormatter, TextFormatter

T0 = 1_700_000_000.0


class Log:
    """A handler of ours on a text, with the time of every record said."""

    def __init__(self, *secrets: str, form: logging.Formatter | None = None) -> None:
        self._text = io.StringIO()
        self._handler = Handler(self._text, secrets)
        self._handler.setFormatter(form or JsonFormatter())

    def say(self, at_s: float, name: str, template: str, *args: object, level: int = logging.ERROR) -> None:
        record = logging.LogRecord(name, level, __file__, 1, template, args, None)
        record.created = T0 + at_s
        self._handler.handle(record)

    @property
    def text(self) -> str:
        return self._text.getvalue()

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text.splitlines()]


def test_a_librarys_message_is_written_now_and_then() -> None:
    log = Log()
    for n in range(100):  # a try every second, as in an outage
        log.say(n, "aiokafka.conn", "Unable to connect to %s: %s", "h:1", n)
    log.say(1000, "ebbtide.ops.worker.run", "all is well")
    log.say(1001, "aiokafka.conn", "Unable to connect to %s: %s", "h:1", 1001)
    lines = log.lines
    tries = [line for line in lines if line["logger"] == "aiokafka.conn"]
    assert [line["message"] for line in tries] == [
        f"Unable to connect to h:1: {n}" for n in (0, 30, 60, 90, 1001)
    ]
    assert [line.get("held_back") for line in tries] == [None, 29, 29, 29, 9]
    assert lines[-2]["message"] == "all is well"


def test_our_own_lines_are_never_held_back() -> None:
    log = Log()
    for n in range(3):
        log.say(n, "aiokafka.conn", "one %s", n)
        log.say(n, "aiokafka.conn", "other")
        log.say(n, "aiokafka.client", "one %s", n)
        log.say(n, "aiokafka.conn", "one %s", n, level=logging.WARNING)
        for name in (
            "ebbtide.stream.partition",
            "ebbtide.ops.http.server",
            "ebbtide.featurestore",
            "ebbtide.model.serving.scorer",
        ):
            log.say(n, name, "partition reopens")
    assert len(log.lines) == 4 + 3 * 4


def test_a_message_that_comes_now_and_then_is_written_each_time() -> None:
    log = Log()
    for n in range(5):
        log.say(n * (REPEAT_S + 1), "faust", "rebalance %s", n)
    assert [line["message"] for line in log.lines] == [f"rebalance {n}" for n in range(5)]


def test_what_is_remembered_is_bounded(capsys: object) -> None:
    log = Log()
    for n in range(3 * TEMPLATES_MAX):
        log.say(0, "lib", f"message {n}")
    (limit,) = log._handler.filters
    assert len(limit._seen) == TEMPLATES_MAX  # type: ignore[union-attr]  # a RateLimit is all there is
    for _ in range(3):
        log.say(0, "lib", "%d and %d", "x")
    log.say(REPEAT_S + 1, "lib", "later")
    assert log.lines[-1]["message"] == "later"


def test_no_secret_is_written_in_whatever_form() -> None:
    for form in (JsonFormatter(), TextFormatter("%(message)s")):
        log = Log("p@ss-wörd", 'third"one', "tok en-2", form=form)
        log.say(0, "ebbtide.ops.worker.run", "going with %s", "p@ss-wörd")
        log.say(0, "redis.asyncio", 'user ann, password p@ss-wörd: refused, third"one, tok en-2')
        try:
            raise ValueError("tok en-2 is wrong")
        except ValueError:
            record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
            record.token = "tok en-2"
            log._handler.handle(record)
        for part in ("p@ss", "wörd", "w\\u00f6rd", "third", "tok en-2"):
            assert part not in log.text, log.text
        assert "going with ***" in log.text and "user ann" in log.text


def test_an_errors_words_stand_beside_its_trace() -> None:
    """What a call says of it is what a person greps for; without that it is the error itself."""
    for extra, words in (
        ({"error": "the log lost its end"}, "the log lost its end"),
        ({}, "ValueError('gone')"),
    ):
        try:
            raise ValueError("gone")
        except ValueError:
            record = logging.LogRecord("x", logging.ERROR, __file__, 1, "stopped", (), sys.exc_info())
        vars(record).update(extra)
        said = json.loads(JsonFormatter().format(record))
        assert said["error"] == words
        assert said["trace"].startswith("Traceback") and said["trace"].endswith("ValueError: gone")


def test_nobodys_words_forge_a_line_of_text() -> None:
    """A broker's words with a newline in them are one line; a trace is lines of its own, none at the margin."""
    log = Log(form=TextFormatter("%(levelname)s %(name)s: %(message)s"))
    forged = "gone\nERROR ebbtide.ops: forged\r\x1b[2J\x85\u2028"
    log.say(0, "ebbtide.stream.kafka", "refused: %s", forged)
    log.say(0, "ebbtide.stream.kafka", forged)
    try:
        raise ValueError(forged)
    except ValueError:
        record = logging.LogRecord("ebbtide.x", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
        record.error = forged
        log._handler.handle(record)
    lines = log.text.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        "ERROR ebbtide.stream.kafka: refused: gone\\nERROR ebbtide.ops: forged\\r\\x1b[2J\\x85\\u2028",
        "ERROR ebbtide.stream.kafka: gone\\nERROR ebbtide.ops: forged\\r\\x1b[2J\\x85\\u2028",
        "ERROR ebbtide.x: failed  error=gone\\nERROR ebbtide.ops: forged\\r\\x1b[2J\\x85\\u2028",
    ]


def test_at_debug_libraries_are_heard_from_warnings_on() -> None:
    code = """
import logging
from ebbtide.ops.observe.logs import configure
configure("debug", "json", ["s3cret-token"])
for name in ("aiokafka.conn", "faust.worker", "redis.asyncio.cluster", "aiohttp.server", "asyncio", "ebbtide.ops.x"):
    logging.getLogger(name).debug("key c-42 of %s", name)
    logging.getLogger(name).warning("heard %s s3cret-token", name)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["logger"] for line in lines if line["level"] == "debug"] == ["ebbtide.ops.x"]
    assert len([line for line in lines if line["message"].startswith("heard")]) == 6
    assert "s3cret" not in said
