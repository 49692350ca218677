"""A worker as a child process: for commands that bring their own worker (demo, replay) and are no worker themselves.

The child is the very `ebbtide worker` of production, told its settings by a file and its secrets by its environment; it
dies with us however we end. When it cannot start or ends by itself, its own last words say why.
"""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from ebbtide.ops.config.child import child_environment, for_child
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.errors import WorkerFailed
from ebbtide.ops.stack.server import free_ports, tied
from ebbtide.stream.clock import SystemClock

READY_S_MAX = 300.0
"""TensorFlow's import and five compiled programs take 15 s on two quiet cores, minutes beside a dozen others."""
POLL_S = 0.1
LOG_LINES_SHOWN = 6


class WorkerProcess:
    """`with WorkerProcess(settings, folder) as worker:` starts it; `wait_ready` returns once partitions are open.

    `address` is its HTTP face, `log` the file it writes to. Its HTTP port is a free one, on loopback.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        port = free_ports(1)[0]
        http = settings.http.model_copy(update={"host": "127.0.0.1", "port": port})
        self._settings = settings.model_copy(update={"http": http})
        self.address = f"http://127.0.0.1:{port}"
        self.log = folder / "worker.log"
        self._config = folder / "worker.yaml"
        self._process: subprocess.Popen[bytes] | None = None
        self._clock = SystemClock()

    def __enter__(self) -> Self:
        data, secrets = for_child(self._settings)
        env = child_environment(**secrets)
        self._config.write_text(yaml.safe_dump(data))
        with self.log.open("wb") as log:
            # A process group of its own: Ctrl-C is for the command to answer, which then stops its worker.
            self._process = subprocess.Popen(
                tied([sys.executable, "-m", "ebbtide.ops.cli", "worker", "--config", str(self._config)]),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, process_group=0,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the child."""
        if self._process is None:
            raise RuntimeError("the worker was not started")
        return self._process.pid

    def check(self) -> None:
        """Raises WorkerFailed, with the worker's last words, when it is not running."""
        if self._process is None or self._process.poll() is None:
            return
        raise WorkerFailed(
            f"the worker ended with code {self._process.returncode}: {self._last_words()}",
            hint=f"its whole log is {self.log}",
        )

    def wait_ready(self, timeout_s: float = READY_S_MAX) -> None:
        """Until `/readyz` says so. Raises WorkerFailed."""
        end_s = self._clock.monotonic_s() + timeout_s
        reason = "it does not answer"
        while self._clock.monotonic_s() < end_s:
            self.check()
            try:
                with urllib.request.urlopen(self.address + "/readyz", timeout=2):  # noqa: S310  # our own address
                    return
            except urllib.error.HTTPError as error:
                reason = json.loads(error.read() or b"{}").get("reason", reason)
            except OSError:
                pass
            self._clock.sleep_s(POLL_S)
        raise WorkerFailed(
            f"the worker is not ready after {timeout_s:.0f} s: {reason}", hint=f"see {self.log}"
        )

    def peak_rss_bytes(self) -> int:
        """The most memory it has held so far, by Linux' own account; 0 elsewhere."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        except OSError:
            return 0
        return next(
            (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0
        )

    def kill(self) -> None:
        """SIGKILL: it says goodbye to nobody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, timeout_s: float = 30.0) -> None:
        """SIGTERM, and SIGKILL for one that does not go."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        said = [line for line in lines if line.startswith("error:")] or lines[-LOG_LINES_SHOWN:]
        return " | ".join(said) or "it said nothing"
