"""The demo's model: `ebbtide train` as a child process, small enough that nobody waits a minute for it.

A process of its own because TensorFlow would stay in ours for the whole show, on cores that the worker needs. It dies
with us, and when it fails, its own last words say why.
"""

import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from ebbtide.ops.config.child import child_environment
from ebbtide.ops.demo.scene import Plan
from ebbtide.ops.errors import OpsError
from ebbtide.ops.stack.server import tied

# Two epochs over 30,000 rows come within 0.02 AUROC of all there is to learn here, in a third of the time; intervals
# are for the card alone. Of two hundred customers in two weeks, thirteen get an alert: what a small team can call, and,
# by other seeds, right in three of four with a margin. By force: the show goes on with whatever a seed's customers
# teach, and the card says what spoke against it.
CHOICES = {
    "--epochs": "2", "--learning-rate": "0.003", "--examples-max": "30000", "--bootstrap": "50",
    "--alert-rate": "0.065",
}  # fmt: skip


class TrainingFailed(OpsError):
    """The demo's training ended without a model."""


class Training:
    """`with Training(plan, events, spec, folder) as training:` starts it; `poll` until it is done."""

    def __init__(self, plan: Plan, events: Path, spec: Path, folder: Path) -> None:
        self.log = folder / "train.log"
        choices = [word for option in {**CHOICES, "--seed": str(plan.seed)}.items() for word in option]
        self._command = [
            sys.executable, "-m", "ebbtide.ops.cli", "train", "--events", str(events), "--spec", str(spec),
            "--out", str(folder / "models"), "--json", str(folder / "train.json"), "--no-refit", "--force",
            *choices,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            # A process group of its own: Ctrl-C is for us to answer.
            self._process = subprocess.Popen(
                tied(self._command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=child_environment(),
                process_group=0,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def poll(self) -> str | None:
        """What it is doing, in words; None once there is a model. Raises TrainingFailed."""
        assert self._process is not None, "used outside of its block"
        code = self._process.poll()
        lines = self.log.read_text(errors="replace").splitlines()
        if code is None:
            told = [m[1] for m in map(re.compile(r"training: (\d+% .+)").fullmatch, lines) if m]
            return told[-1] if told else "loading TensorFlow"
        if code == 0:
            return None
        words = next(
            (line for line in reversed(lines) if line.startswith("error: ")), "error: it said nothing"
        )
        raise TrainingFailed(
            f"training failed: {words.removeprefix('error: ')}", hint=f"its whole log is {self.log}"
        )
