"""Durations as people write them: a number and a unit, milliseconds inside."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

SECOND_MS = 1_000
HOUR_MS = 3_600 * SECOND_MS
DAY_MS = 24 * HOUR_MS
UNITS_MS = {"ms": 1, "s": SECOND_MS, "m": 60 * SECOND_MS, "h": HOUR_MS, "d": DAY_MS, "w": 7 * DAY_MS}


def parse_duration(value: object) -> int:
    """Milliseconds of a duration such as `90s`, `1.5h`, `30d`, `2w`. Raises ValueError on anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", str(value))
    if match is None:
        raise ValueError(f"{value!r} is not a duration: write a number and a unit, e.g. 90s, 6h, 30d, 2w")
    return round(float(match[1]) * UNITS_MS[match[2]])


def format_duration(ms: int) -> str:
    """The shortest exact name of a duration: 86400000 -> '1d', 5400000 -> '90m'."""
    for unit in ("w", "d", "h", "m", "s"):
        if ms and ms % UNITS_MS[unit] == 0 and (unit != "w" or ms >= 8 * UNITS_MS["w"]):
            return f"{ms // UNITS_MS[unit]}{unit}"
    return f"{ms}ms"


def _positive(ms: int) -> int:
    if ms <= 0:
        raise ValueError("must be longer than zero")
    return ms


DurationMs = Annotated[int, BeforeValidator(parse_duration), Field(ge=0)]
PositiveDurationMs = Annotated[DurationMs, AfterValidator(_positive)]
