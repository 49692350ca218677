"""Dates as options: 2017-10-01, or RFC 3339 with a time; UTC where no zone is said."""

from datetime import UTC, datetime
from typing import Any

import click


class _Date(click.ParamType):
    name = "DATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a date such as 2017-10-01 or 2017-10-01T12:00:00Z", param, ctx)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)


DATE = _Date()
"""An option's type: ms UTC."""


def dates(_ctx: click.Context, _param: click.Parameter, value: str) -> list[int]:
    """An option's callback: dates separated by commas, ascending."""
    return sorted(DATE.convert(part.strip(), _param, _ctx) for part in value.split(",") if part.strip())
