"""TensorBoard itself on a folder, asked by HTTP."""

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Ask:
    """ask(path, body=None, **query): GET (POST with a body) of <address>/data/<path>; JSON where it is JSON."""

    address: str

    def __call__(self, path: str, body: Any = None, **query: Any) -> Any:
        url = f"{self.address}/data/{path}?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            text = answer.read().decode()
        return json.loads(text) if text[:1] in "[{" else text


@contextmanager
def tensorboard(folder: Path, run: str) -> Iterator[Ask]:
    """Up once it shows the scalars of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port",
            str(port), "--load_fast", "false",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    ask = Ask(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                if run in ask("plugin/scalars/tags"):
                    break
            except OSError:
                assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield ask
    finally:
        process.terminate()
        process.wait(20)
