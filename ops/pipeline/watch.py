"""A run by itself when new files have come, or when they have and the live topic has moved away from what was learned.

    look every so often ─▶ files as they were? wait
                        ─▶ one still being written? wait
                        ─▶ start_on: skew, and the live topic still like the history? wait
                        ─▶ else `ebbtide pipeline run` as a child ─▶ failed or refused: what is in service stays

Files are told apart by path, size and time of change, which costs nothing; whether anything is to be made again is for
the run to say, which reads them. What has failed is not tried again before a file, the schema or the configuration has
changed: the same bytes would fail the same way.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ebbtide.featurestore.errors import EbbtideError, SpecError
from ebbtide.featurestore.files.remote import is_remote, listed
from ebbtide.featurestore.files.sources import event_files
from ebbtide.model.serving.folder import latest_version
from ebbtide.ops.config.child import child_environment
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.pipeline.config import PipelineConfig, load_config
from ebbtide.ops.pipeline.skew import skew
from ebbtide.ops.stack.server import tied
from ebbtide.stream.clock import SystemClock

Seen = tuple[tuple[str, int, int], ...]
"""Path, bytes and time of change (ns) of each file."""


def watch(
    file: Path, say: Callable[[str], None], runs_max: int | None = None, clock: SystemClock | None = None
) -> int:
    """Watch until Ctrl-C, or until `runs_max` runs were started. Returns how many failed. Raises SettingsError for a
    configuration that does not fit at the start; later it is told, and waited for."""
    clock = clock or SystemClock()
    config = load_config(file)
    seen: Seen | None = None
    told: str | None = None
    runs = failed = 0
    say(f"watching {', '.join(config.events)}")
    while runs_max is None or runs < runs_max:
        now = look(file, config)
        settled = (
            max((changed for _, _, changed in now), default=0)
            <= (clock.now_ms() - config.watch.settle_ms) * 1_000_000
        )
        due = bool(now) and now != seen and settled
        if config.watch.start_on == "skew" and seen is not None:
            words = _moved(config)
            if words != told:
                told = words
                say(words or "the live topic is like the history")
                if words and now == seen:
                    say("no new files to learn from: export them")
            due = due and bool(words)
        if due:
            say("new files: a run starts" if seen is not None else "the first run starts")
            seen, runs = now, runs + 1
            code = subprocess.run(
                tied([sys.executable, "-m", "ebbtide.ops.cli", "pipeline", "run", "--config", str(file)]),
                stdin=subprocess.DEVNULL, env=child_environment(), check=False,
            ).returncode  # fmt: skip
            failed += code != 0
            say(
                f"{'done' if code == 0 else 'the run failed, what is in service stays'}: {_in_service(config)}"
            )
            continue
        clock.sleep_s(config.watch.every_ms / 1000)
    return failed


def look(file: Path, config: PipelineConfig) -> Seen:
    """The events' files as they are, and what else a run is made of; nothing where there is no event file yet."""
    try:
        away = [(name, each) for name in config.events if is_remote(name) for each in listed(name)]
        here = [name for name in config.events if not is_remote(name)]
        found = [each.path for each in event_files(here)] if here else []
    except SpecError:
        return ()
    elsewhere = tuple((f"{name} {each.path}", each.size, each.changed_ns) for name, each in away)
    besides = [path for path in (file, config.spec, config.expected) if path is not None and path.exists()]
    states = [(path, path.stat()) for path in (*found, *besides) if path.exists()]
    return elsewhere + tuple((str(path), state.st_size, state.st_mtime_ns) for path, state in states)


def _moved(config: PipelineConfig) -> str:
    """How the live topic differs from the history of the last run, in words; "" when it does not, or nobody can say."""
    try:
        worker = load_settings(config.watch.settings)
        found = asyncio.run(skew(config, worker.kafka, worker.parse_limits, config.watch.records))
    except EbbtideError as error:
        return f"whether the live topic differs is not known: {error}"
    return "; ".join(map(str, found.anomalies))


def _in_service(config: PipelineConfig) -> str:
    homes = [path for path in config.out.iterdir() if path.is_dir()] if config.out.is_dir() else []
    latest = [str(found) for home in homes if (found := latest_version(home)) is not None]
    return ", ".join(latest) or "nothing is published yet"
