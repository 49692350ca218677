"""A run of the line: what is there is reused, what is not is made, and all of it is written down.

    plan ─▶ for each stage: key of its choices and of its inputs' contents ─▶ there? reuse : make, keep
                                                                          ─▶ runs/<number>.json after every stage

A run that ended before its last stage is gone on with by the next one that asks for the same. A stage that fails ends
the run with its name, its words and what to do; what was made before it stays.
"""

import errno
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.times.timestamps import format_time, instant
from ebbtide.model.errors import ModelRefused
from ebbtide.model.factory.line import BY_NAME, PUSHED, STAGES, Stage
from ebbtide.model.factory.plan import Plan, Work
from ebbtide.model.factory.values import read_value, write_value
from ebbtide.model.training.progress import Stages
from ebbtide.ops.errors import OpsError
from ebbtide.ops.pipeline.store import Artifact, ArtifactDamaged, Store, hash_of
from ebbtide.stream.clock import Clock

NAMES = tuple(stage.name for stage in STAGES)


class StageFailed(OpsError):
    """A stage ended without its artifact. `refused`: the gate said no."""

    def __init__(self, message: str, *, hint: str = "", refused: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.refused = refused


class InputMissing(OpsError):
    """A stage was asked for alone, and what it reads has not been made."""


@dataclass
class Runner:
    """`Runner(store, plan, clock).run()`. told: (stage, what is done with it) as it comes. before_tensorflow: called
    once, before the first stage that loads it."""

    store: Store
    plan: Plan
    clock: Clock
    progress: Stages = field(default_factory=Stages)
    told: Callable[[str, str], None] = lambda _stage, _what: None
    before_tensorflow: Callable[[], object] = lambda: None
    _made: dict[str, Any] = field(default_factory=dict)
    _found: dict[str, Artifact] = field(default_factory=dict)
    _loaded: bool = False

    def run(self, wanted: Sequence[str] = NAMES) -> dict[str, Any]:
        """Make or reuse the wanted stages, in the line's order. Returns the run as it is written down.

        Raises RunUnderWay, StageFailed, InputMissing, ArtifactDamaged."""
        with self.store.locked(), self._recorded() as (number, record):
            for stage in STAGES:
                alone = stage.name not in wanted
                key = self.key(stage)
                if key is None:
                    if alone:
                        continue
                    missing = next(name for name in stage.inputs if name not in self._found)
                    raise InputMissing(
                        f"stage {stage.name} reads what {missing} makes, and that is not there",
                        hint=f"run `ebbtide pipeline stage {missing}` first",
                    )
                artifact = self._present(stage, key)
                if artifact is None and alone:
                    continue
                before = record["stages"].get(stage.name, {})
                reused = artifact is not None and before.get("key") != key
                if artifact is None:
                    self.told(stage.name, stage.words)
                    artifact = self._make(stage, key)
                elif not alone:
                    self.told(stage.name, "reused")
                self._found[stage.name] = artifact
                record["stages"][stage.name] = {
                    "key": key, "digest": artifact.digest, "seconds": artifact.seconds, "reused": reused,
                    "inputs": artifact.inputs,
                }  # fmt: skip
                self.store.write_run(number, record)
            return record

    def follow(self, name: str) -> None:
        """Make a stage for the sake of the others who make it (a worker of several that is not the first): nothing is
        kept, and nobody is locked out. Raises InputMissing, StageFailed."""
        self.look()
        stage = BY_NAME[name]
        if missing := [each for each in stage.inputs if each not in self._found]:
            raise InputMissing(
                f"stage {name} reads what {missing[0]} makes, and that is not there",
                hint=f"run `ebbtide pipeline stage {missing[0]}` on one machine first",
            )
        self._quietly(stage)
        with _named(stage), tempfile.TemporaryDirectory(prefix="ebbtide-follow-") as folder:
            stage.make(self._work(stage, Path(folder)))

    def key(self, stage: Stage) -> str | None:
        """What its artifact is found by; None where an input is not there."""
        if any(name not in self._found for name in stage.inputs):
            return None
        inputs = {name: self._found[name].digest for name in stage.inputs}
        return hash_of([stage.name, stage.version, stage.choices(self.plan), inputs])

    def look(self) -> dict[str, Artifact | None]:
        """What is there of what a run would want, changing nothing; None: it would be made."""
        found: dict[str, Artifact | None] = {}
        for stage in STAGES:
            key = self.key(stage)
            there = None if key is None else self.store.find(stage.name, key)
            if there is not None:
                self._found[stage.name] = there
            found[stage.name] = there
        return found

    def value(self, name: str) -> Any:
        """A stage's value: as it was made here, or read from its artifact."""
        if name not in self._made:
            artifact = self._found[name]
            artifact.check()
            stage = BY_NAME[name]
            self._quietly(stage)
            self._made[name] = read_value(artifact.folder, stage.carriers(self._work(stage, artifact.folder)))
        return self._made[name]

    def folder_of(self, name: str) -> Path:
        """Where a stage's artifact lies."""
        return self._found[name].folder

    def _present(self, stage: Stage, key: str) -> Artifact | None:
        found = self.store.find(stage.name, key)
        if found is None or stage.name != "pusher":
            return found
        # Somebody may have removed the version since: then it is to be published again.
        return found if Path(pushed(found.folder)["path"]).is_dir() else None

    def _make(self, stage: Stage, key: str) -> Artifact:
        began = self.clock.monotonic_s()
        inputs = {name: self._found[name].digest for name in stage.inputs}
        self._quietly(stage)
        with _named(stage), self.store.staging(stage.name) as staging:
            work = self._work(stage, staging)
            value = stage.make(work)
            write_value(staging, value, stage.carriers(work))
            seconds = self.clock.monotonic_s() - began
            made = self.store.keep(staging, stage.name, key, seconds, inputs, stage.choices(self.plan))
        self._made[stage.name] = value
        return made

    def _work(self, stage: Stage, folder: Path) -> Work:
        allowed = {*stage.inputs}

        def read(name: str) -> Any:
            assert name in allowed, f"{stage.name} does not declare {name} as an input"
            return self.value(name)

        created = instant(self.clock.now_ms())
        return Work(self.plan, read, self.folder_of, folder, self.progress, created)

    def _quietly(self, stage: Stage) -> None:
        if stage.needs_tensorflow and not self._loaded:
            self.before_tensorflow()
            self._loaded = True

    @contextmanager
    def _recorded(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The run's record, gone on with or begun; how it ends is written in any case."""
        asked = hash_of([[stage.name, stage.version, stage.choices(self.plan)] for stage in STAGES])
        numbers = self.store.runs()
        record = self.store.read_run(numbers[-1]) if numbers else {}
        if not numbers or record["asked"] != asked or record["outcome"] == "done":
            number = numbers[-1] + 1 if numbers else 1
            record = {"run": number, "asked": asked, "began": self._now(), "stages": {}}
        number = record["run"]
        record |= {
            "outcome": "running", "error": None, "ended": None, "spec": self.plan.spec.name,
            "events": list(self.plan.events), "files": len(self.plan.sources),
        }  # fmt: skip
        self.store.write_run(number, record)
        try:
            yield number, record
        except BaseException as error:
            refused = isinstance(error, StageFailed) and error.refused
            stopped = not isinstance(error, Exception)
            record["outcome"] = "stopped" if stopped else "refused" if refused else "failed"
            record["error"] = str(error) or type(error).__name__
            raise
        else:
            record["outcome"] = "done" if len(record["stages"]) == len(STAGES) else "part"
        finally:
            record["ended"] = self._now()
            try:
                self.store.write_run(number, record)
            except OSError as error:  # what went wrong first is what is to be told
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise

    def _now(self) -> str:
        return format_time(self.clock.now_ms())


def pushed(folder: Path) -> dict[str, Any]:
    """`path` and `version` of a pusher's artifact."""
    said: dict[str, Any] = json.loads((folder / PUSHED).read_text(encoding="utf-8"))
    return said


@contextmanager
def _named(stage: Stage) -> Iterator[None]:
    """What goes wrong in a stage says so, in one line, and what to do."""
    try:
        yield
    except ArtifactDamaged:
        raise  # names its own stage
    except EbbtideError as error:
        words = error.args[0] if error.args else type(error).__name__
        raise StageFailed(
            f"stage {stage.name}: {words}", hint=error.hint, refused=isinstance(error, ModelRefused)
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = f"{error.filename}: " if error.filename else ""
        raise StageFailed(
            f"stage {stage.name}: {where}{error.strerror or error}",
            hint=("make room there" if full else "check the path, and that we may read or write there")
            + "; the next run goes on with this stage",
        ) from error
