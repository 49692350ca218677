"""Artifacts on disk: each stage's value under a key that says all it was made of, whole or not at all.

    RUNS/                              mode 0700: customers' ids are in it
        remote/                        mirrors of events that lie elsewhere
        lock                           held by the run under way
        artifacts/<stage>/<key>/       artifact.json (inputs, seconds, bytes and hash of every file), then its files
        artifacts/<stage>/.making-…/   being made; what a killed run left is removed by the next
        runs/<number>.json             what a run asked for, made, reused, and how it ended

The key is a hash of the stage's version, its choices and its inputs' *contents*: so what has not changed is found
again, whoever made it and when, and a run that was killed goes on where it was.
"""

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ebbtide.model.serving.folder import sync
from ebbtide.ops.errors import OpsError

MANIFEST = "artifact.json"
RUN_DIGITS = 6


class ArtifactDamaged(OpsError):
    """An artifact is not what its stage has written."""


class RunUnderWay(OpsError):
    """Another process holds the lock of these runs."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """stage, key: its place. digest: of all its files. inputs: stage -> digest of what it was made of. files: path ->
    (bytes, hash)."""

    stage: str
    key: str
    digest: str
    seconds: float
    inputs: dict[str, str]
    choices: dict[str, Any]
    files: dict[str, tuple[int, str]]
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> "Artifact | None":
        """None where there is none; a manifest that says nothing is none."""
        try:
            data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files = {name: (int(size), str(digest)) for name, (size, digest) in data.pop("files").items()}
            return cls(folder=folder, files=files, **data)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def check(self) -> None:
        """Read every byte again. Raises ArtifactDamaged, which names the file."""
        for name, (size, digest) in self.files.items():
            path = self.folder / name
            hint = f"remove {self.folder}: the next run makes it anew"
            if not path.is_file():
                raise ArtifactDamaged(f"stage {self.stage}: its file {path} is gone", hint=hint)
            if path.stat().st_size != size:
                words = f"{path} has {path.stat().st_size:,} bytes of {size:,}"
                raise ArtifactDamaged(f"stage {self.stage}: its file {words}", hint=hint)
            if _digest(path) != digest:
                raise ArtifactDamaged(
                    f"stage {self.stage}: its file {path} is not what was written", hint=hint
                )


class Store:
    """The folder of runs. Raises OSError where it cannot be made."""

    def __init__(self, root: Path, *, durable: bool = True) -> None:
        """durable: what is kept is on disk before its name is; not for a folder that ends with the process."""
        self.root, self._durable = root, durable
        for folder in (root, root / "artifacts", root / "runs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Whoever comes second is refused (RunUnderWay): two runs do not meet. The system frees a killed one's lock."""
        with (self.root / "lock").open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunUnderWay(
                    f"another run is at work in {self.root}",
                    hint="wait for it: `ebbtide pipeline status` shows how far it is",
                ) from None
            for left in self.root.glob("artifacts/*/.making-*"):
                shutil.rmtree(left, ignore_errors=True)
            yield

    @property
    def busy(self) -> bool:
        """Whether a run is under way."""
        with (self.root / "lock").open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def find(self, stage: str, key: str) -> Artifact | None:
        return Artifact.read(self.root / "artifacts" / stage / key)

    @contextmanager
    def staging(self, stage: str) -> Iterator[Path]:
        """An empty folder to make an artifact in; what was not kept of it is gone afterwards."""
        home = self.root / "artifacts" / stage
        home.mkdir(mode=0o700, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".making-", dir=home))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(
        self,
        staging: Path,
        stage: str,
        key: str,
        seconds: float,
        inputs: Mapping[str, str],
        choices: Mapping[str, Any],
    ) -> Artifact:
        """What was made appears: on disk first, then by its name. Raises OSError."""
        files = {
            path.relative_to(staging).as_posix(): (path.stat().st_size, _digest(path))
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        digest = hash_of(sorted((name, found) for name, (_, found) in files.items()))
        target = self.root / "artifacts" / stage / key
        made = Artifact(stage, key, digest, seconds, dict(inputs), dict(choices), files, target)
        data = {name: value for name, value in asdict(made).items() if name != "folder"}
        (staging / MANIFEST).write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")
        for path in (*staging.rglob("*"), staging) if self._durable else ():
            sync(path)
        if target.exists():  # one that was found damaged
            shutil.rmtree(target)
        staging.rename(target)
        if self._durable:
            sync(target.parent)
        return made

    def runs(self) -> list[int]:
        """Numbers of the runs, ascending."""
        return sorted(int(path.stem) for path in (self.root / "runs").glob("*.json") if path.stem.isdecimal())

    def read_run(self, number: int) -> dict[str, Any]:
        """Raises OpsError where there is none."""
        try:
            data: dict[str, Any] = json.loads(self._run_path(number).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = ", ".join(map(str, self.runs()[-5:])) or "none"
            raise OpsError(f"{self.root} has no run {number}", hint=f"the latest are: {known}") from None
        return data

    def write_run(self, number: int, data: Mapping[str, Any]) -> None:
        """Whole or not at all. Raises OSError."""
        path = self._run_path(number)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")
        beside.replace(path)

    def forget(self, kept_runs: int) -> None:
        """Remove the artifacts that none of the latest runs names."""
        named = {
            (stage, of["key"])
            for number in self.runs()[-kept_runs:]
            for stage, of in self.read_run(number)["stages"].items()
        }
        for folder in self.root.glob("artifacts/*/*"):
            if (folder.parent.name, folder.name) not in named:
                shutil.rmtree(folder, ignore_errors=True)

    def _run_path(self, number: int) -> Path:
        return self.root / "runs" / f"{number:0{RUN_DIGITS}d}.json"


def hash_of(value: Any) -> str:
    """32 hex digits of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
