"""A command of `ebbtide` as an operator calls it, in a process of its own, forked like the workers: it may be killed.

It knows files of settings, logs and exit codes; what the command is for is whoever's who gives it.
"""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chaos.workers import Forks, Worker

COMMAND_S_MAX = 120.0


class Operator:
    """Calls commands under `settings` (JSON); their logs go below `folder`. `failed`: what ended with another code
    than 0, unless it was killed."""

    def __init__(self, forks: Forks, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._forks, self._folder, self._config = forks, folder, folder / "settings.json"
        self._config.write_text(json.dumps(settings))
        self._called = 0
        self.failed: list[str] = []

    async def call(self, *words: str) -> Worker:
        """It has begun."""
        self._called += 1
        log = self._folder / f"{self._called:02d}-{words[0]}.log"
        log.touch()
        line = [*words, "--config", str(self._config)]
        return Worker(await asyncio.to_thread(self._forks.command, line, log), -1, log)

    async def done(self, command: Worker) -> str:
        """Wait until it has ended; what it said."""
        code = await command.ended(COMMAND_S_MAX)
        said = command.log.read_text(errors="replace")
        if code != 0:
            command.kill()
            self.failed.append(f"{command.log.name}: code {code}: {said[-400:]}")
        return said
