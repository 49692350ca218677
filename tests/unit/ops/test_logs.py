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


def test_a_message_of_a_library_is_written_once_in_a_while_with_a_count() -> None:
    log = Log()
    for n in range(100):  # a try every second, as in an outage
        log.say(n, "aiokafka.conn", "Unable to connect to %s: %s", "h:1", n)
    log.say(1000, "ebbtide.ops.worker.run", "all is well")
    lines = log.lines
    tries = [line for line in lines if line["logger"] == "aiokafka.conn"]
    assert len(tries) == 1 + 100 // REPEAT_S + 1
    assert len(tries) + sum(int(str(line.get("held_back", 0))) for line in tries) == 100
    assert tries[0]["message"] == "Unable to connect to h:1: 0" and "held_back" not in tries[0]
    assert tries[-1]["message"] == "Unable to connect to h:1: 99"
    assert lines[-1]["message"] == "all is well"


def test_other_messages_loggers_and_levels_are_counted_apart_and_ours_never() -> None:
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


def test_what_is_remembered_is_bounded_and_bad_arguments_do_no_harm(capsys: object) -> None:
    log = Log()
    for n in range(3 * TEMPLATES_MAX):
        log.say(0, "lib", f"message {n}")
    assert len(log._handler._seen) == TEMPLATES_MAX
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


def test_at_debug_libraries_are_heard_from_warnings_on_and_we_are_heard() -> None:
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
