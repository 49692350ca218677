"""What policies came to, as a table, as JSON and as plots. It computes nothing that `simulate.py` did not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ebbtide.model.training.plots import draw_lines
from ebbtide.ops.policy.simulate import Outcome


@dataclass(frozen=True, slots=True)
class Money:
    """What a user states: the value of a customer who is kept, the cost of a contact, and the share of those rightly
    contacted who stay."""

    value: float
    cost: float
    saved: float = 1.0

    def of(self, found: Outcome) -> float:
        """The expected gain of all contacts."""
        return found.gain(self.value, self.cost, self.saved)


def table(named: Sequence[tuple[str, Outcome]], money: Money | None) -> Table:
    """A row a policy."""
    shown = Table(box=None, pad_edge=False)
    columns = [
        "policy", "enter", "episodes", "a day", "escalated", "held back", "held out", "precision", "recall", "lead",
    ]  # fmt: skip
    for column in [*columns, *(["cost", "gain"] if money else [])]:
        shown.add_column(column, justify="left" if column == "policy" else "right")
    for name, found in named:
        row = [
            name, f"{found.enter:.4f}", f"{found.opened:,}", f"{found.opened_per_day:,.2f}",
            f"{found.said.get('escalated', 0):,}", f"{found.held.get('budget', 0):,}",
            f"{found.held.get('holdout', 0):,}", _percent(found.precision), _percent(found.recall),
            "-" if math.isnan(found.lead_days_p50) else f"{found.lead_days_p50:.1f} d",
        ]  # fmt: skip
        if money:
            row += [f"{money.cost * found.opened:,.0f}", f"{money.of(found):,.0f}"]
        shown.add_row(*row)
    return shown


def as_json(found: Outcome, money: Money | None) -> dict[str, Any]:
    """An outcome under stable names; null where there was nothing to divide."""
    data = {
        "enter": found.enter, "days": found.days, "opened": found.opened,
        "opened_per_day": _number(found.opened_per_day), "alerts": dict(found.said), "held_back": dict(found.held),
        "known": found.known, "right": found.right, "precision": _number(found.precision),
        "churners": found.churners, "recall": _number(found.recall),
        "lead_time_days_p50": _number(found.lead_days_p50),
    }  # fmt: skip
    return data | ({"cost": money.cost * found.opened, "gain": money.of(found)} if money else {})


def draw(
    folder: Path, tried: Sequence[Outcome], marked: Sequence[tuple[str, Outcome]], money: Money | None
) -> None:
    """Write `rates.png` (precision and recall by episodes a day) and, where money was stated, `gain.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    x = ("episodes a day", [found.opened_per_day for found in tried])
    marks = [(name, found.opened_per_day) for name, found in marked]
    shares = {
        "precision": [found.precision for found in tried],
        "recall": [found.recall for found in tried],
    }
    draw_lines(folder / "rates.png", x, "share", shares, marks)
    if money:
        gain = {"expected gain": [money.of(found) for found in tried]}
        draw_lines(folder / "gain.png", x, "gain", gain, marks)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
