"""A finding about a log under a spec, and the words for its numbers.

    error     it will not work, or will learn the wrong thing
    warning   it will work, and probably not as meant
    note      worth knowing

It knows how to say something to a person who knows their data and not our code; what there is to say, `events.py` and
`times.py` know. A `code` is stable, for scripts; a text may change.
"""

from dataclasses import dataclass
from typing import Literal

from ebbtide.featurestore.times.durations import DAY_MS

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not fit or is worth knowing, in a sentence or two that name the number they rest on."""

    severity: Literal["error", "warning", "note"]
    code: str
    text: str


def error(code: str, text: str) -> Finding:
    return Finding("error", code, text)


def warning(code: str, text: str) -> Finding:
    return Finding("warning", code, text)


def note(code: str, text: str) -> Finding:
    return Finding("note", code, text)


def count(n: int, noun: str) -> str:
    """'1 event', '2,000 events'."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def percent(part: float, whole: float = 1.0) -> str:
    """A share in percent: whole from 10 % on, two digits below, never 0 % or 100 % for what is only near."""
    share = 100 * part / whole if whole else 0.0
    if 99 < share < 100:
        return "over 99 %"
    return f"{share:.0f} %" if share >= 10 or not share else f"{share:.2g} %"


def days(ms: float) -> str:
    """A span of time, roughly, in its natural unit."""
    for unit, size in (("day", DAY_MS), ("hour", DAY_MS / 24), ("minute", DAY_MS / 1440)):
        if ms >= 2 * size:
            return f"{ms / size:.0f} {unit}s"
    return f"{ms / 1000:.0f} seconds"
