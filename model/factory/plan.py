"""What a run of the factory is asked for: the object that all stages read their choices from. It loads no
TensorFlow."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ebbtide.featurestore.files.sources import event_files
from ebbtide.featurestore.parts.engine import Engine
from ebbtide.featurestore.parts.processes import HERE
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, dump_spec
from ebbtide.model.config import TrainConfig
from ebbtide.model.factory.schema import Schema
from ebbtide.model.training.progress import Stages


@dataclass(frozen=True, slots=True)
class Plan:
    """events: as `read_log` takes them. sources: what is behind them, see `sources_of`. schema: None is inferred.
    spans: that statistics are made of. out: the folder of models. engine: who reads files
    and walks through the history; nothing that is made depends on it. The rest as `train_model` takes it."""

    spec: Spec
    events: tuple[str, ...]
    sources: tuple[tuple[str, int, str], ...]
    out: Path
    config: TrainConfig
    labels_until_ms: int | None = None
    schema: Schema | None = None
    spans: int = 4
    engine: Engine = HERE
    force: bool = False

    @property
    def spec_json(self) -> dict[str, Any]:
        return dump_spec(self.spec)


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage is given. values: of its inputs, by their stages' names; read when asked for. folder_of: where an
    input's artifact lies. folder: an empty one, for what goes beside the stage's value."""

    plan: Plan
    values: Callable[[str], Any]
    folder_of: Callable[[str], Path]
    folder: Path
    progress: Stages
    created: datetime

    @property
    def layout(self) -> Layout:
        return Layout(self.plan.spec)


def sources_of(events: Sequence[str | Path]) -> tuple[tuple[str, int, str], ...]:
    """Path, bytes and a hash of the content of every file behind what was named, in the order in which it is read: what
    a run depends on, whatever clocks say. Raises SpecError, OSError."""
    return tuple(
        (str(file.path), file.path.stat().st_size, _digest(file.path)) for file in event_files(list(events))
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
