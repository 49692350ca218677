"""What a command shows and to whom: tables to a person, figures to a script, progress to whoever waits.

    standard output   the result: tables and text that can be piped
    standard error    progress and errors; on a terminal one live line, in a file a line a step and every ten seconds
    --json FILE       the same figures under stable names

It knows terminals and files, and refuses to know what a figure means. The invariant: nothing that a person needs is
only in colour, and a piped run reads from top to bottom without control characters.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ebbtide.stream.clock import SystemClock

PIPED_WIDTH = 120
"""Columns of a table in a file, where there is no terminal to ask."""
LINE_EVERY_S = 10.0
"""How often a long step says in a file how far it is."""


def console(*, stderr: bool = False) -> Console:
    """A console on the standard stream as it is now. No emoji codes, no markup: names may hold brackets."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPED_WIDTH
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


class Steps:
    """The steps of a command, as they come. `steps("reading a.csv")` begins one and ends the one before.

    A message `what: detail` with the `what` of the step under way only changes its detail, and `advance` says how
    much of it is done. Safe to call from several threads.
    """

    def __init__(self, progress: Progress, to: Console) -> None:
        self._progress, self._console, self._clock = progress, to, SystemClock()
        self._task: TaskID | None = None
        self._what = self._detail = ""
        self._began_s = self._told_s = 0.0

    def __call__(self, message: str) -> None:
        what, _, detail = message.partition(": ")
        now_s = self._clock.monotonic_s()
        if what != self._what:
            self.end()
            self._what, self._began_s, self._told_s = what, now_s, now_s
            if self._live:
                self._task = self._progress.add_task(what, total=None, detail="")
            else:
                self._tell(f"{what} ...")
        self._show(detail)

    def advance(self, done: float, total: float, detail: str = "") -> None:
        """So much of the step is done."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)
        self._show(detail, f"{done / total:.0%}" if total else "")

    def end(self) -> None:
        """The step under way is over."""
        took_s = self._clock.monotonic_s() - self._began_s
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        if self._what and (self._live or took_s >= 2):
            self._tell(f"{self._what}: {took_s:.1f} s")
        self._what = ""

    @property
    def _live(self) -> bool:
        return self._console.is_terminal

    def _show(self, detail: str, share: str = "") -> None:
        if self._task is not None:
            self._progress.update(self._task, detail=detail)
            return
        now_s = self._clock.monotonic_s()
        text = " ".join(part for part in (share, detail) if part)
        if self._what and text and now_s - self._told_s >= LINE_EVERY_S:
            self._told_s = now_s
            self._tell(f"{self._what}: {text}")

    def _tell(self, line: str) -> None:
        self._console.print(line, style="dim" if self._live else "", soft_wrap=True)


@contextmanager
def steps() -> Iterator[Steps]:
    """Progress on standard error for as long as the block runs."""
    to = console(stderr=True)
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(), console=to, transient=True, disable=not to.is_terminal,
    )  # fmt: skip
    with bar:
        shown = Steps(bar, to)
        yield shown
        shown.end()


def table_and_json(table: RenderableType | None, data: Mapping[str, Any], json_path: Path | None) -> None:
    """Print the table; write the same figures as JSON (NaN as null) where a file is given. Raises OSError."""
    if table is not None:
        console().print(table)
    if json_path is not None:
        options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        json_path.write_bytes(orjson.dumps(data, option=options))
