"""What is counted, and what is wrong: of a run, a phase, a comparison.

Invariant: whatever is counted as wrong is a figure and, unless there is none of it, a problem with examples.
"""

from dataclasses import dataclass, field
from typing import Any

SHOWN = 5


@dataclass
class Tally:
    """Counts by name; `problems` are sentences. What is in them is why `make chaos` fails."""

    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.problems

    def count(self, name: str, wrong: list[Any]) -> None:
        """Any of these is a defect."""
        self.figures[name] = self.figures.get(name, 0) + len(wrong)
        if wrong:
            self.problems.append(f"{name}: {len(wrong)}, such as {wrong[:SHOWN]}")

    def add(self, name: str, other: "Tally") -> None:
        """Take in the tally of a part: its figures, numbers of the same name added up, and its problems by its name."""
        for figure, n in other.figures.items():
            self.figures[figure] = self.figures.get(figure, 0) + n
        self.problems += [f"{name}: {problem}" for problem in other.problems]
