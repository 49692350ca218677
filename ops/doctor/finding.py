"""What an examination finds: one line a check, with what to mend. An error of ours is a finding, too."""

from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

from ebbtide.featurestore.errors import EbbtideError


class Level(StrEnum):
    """ok: as it should be. warning: it works, and will hurt one day. error: a worker does not start, or loses
    something."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(NamedTuple):
    """`check` names what was looked at, `found` says what there is, `remedy` what to change (empty: nothing)."""

    check: str
    level: Level
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.WARNING, found, remedy)


def error(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.ERROR, found, remedy)


async def attempt(check: str, examine: Callable[[], Awaitable[Iterable[Finding]]]) -> list[Finding]:
    """What `examine` finds; what it raises of ours is an error under the name of `check`."""
    try:
        return list(await examine())
    except EbbtideError as raised:
        return [error(check, str(raised.args[0]), raised.hint)]
