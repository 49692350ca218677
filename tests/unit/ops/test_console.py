"""Progress in a file: a line a step and one every ten seconds, however often somebody says how far it is."""

from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ebbtide.ops.console import LINE_EVERY_S, Steps


def test_a_piped_run_says_a_line_a_step() -> None:
    written = StringIO()
    to = Console(file=written, width=120)
    steps = Steps(Progress(console=to, disable=True), to)
    for step in ("reading", "training"):
        steps(step)
        for at in range(5_000):
            steps.advance(at, 5_000, f"row {at}")
            steps(f"{step}: row {at}")
    steps.end()
    assert written.getvalue().splitlines() == ["reading ...", "training ..."]
    assert LINE_EVERY_S >= 10.0


def test_no_words_of_ours_hold_a_consoles_markup() -> None:
    """Consoles here have none, since names may hold brackets: `[green]ok[/]` was printed as it stands."""
    files = (Path(__file__).parents[3] / "ops").rglob("*.py")
    assert [str(file) for file in files if "[/]" in file.read_text(encoding="utf-8")] == []
