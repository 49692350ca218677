"""Where a training of several processes was after its last epoch, so that it goes on there when one of them was killed.

    epoch ends ─▶ the leader writes <folder>/<run>-<what it is of>.npz, whole or not at all
    one dies, all are started again ─▶ each reads it ─▶ the same weights, moments, seeds and curves as before

A step of several processes waits for all of them, so one that dies takes the others with it, and no single one can go
on. The batches of an epoch are a function of the seed and its number: what follows is what would have followed. The
folder has to be one that all of them see, as the runs of a pipeline are.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.model.config import PLACES, TrainConfig
from ebbtide.model.examples.examples import Examples


@dataclass(frozen=True, slots=True)
class Progress:
    """After `len(loss)` epochs. variables: of network and optimizer, in their order. logits: of the watched rows,
    before the first and after each epoch. losses: what they lost there. over: no epoch follows."""

    variables: list[NDArray[Any]]
    loss: list[float]
    logits: list[NDArray[np.float32]]
    losses: list[float]
    over: bool


class Backup:
    """Of one training: of these rows, by these choices. Without a folder nothing is kept."""

    def __init__(self, config: TrainConfig, run: str, train: Examples, epochs: int) -> None:
        self._path: Path | None = None
        if config.backup_dir is not None:
            of = hashlib.blake2b(config.model_dump_json(exclude=PLACES).encode(), digest_size=8)
            of.update(f"{run} {epochs}".encode())
            for column in (train.customer, train.as_of, train.churned):
                of.update(np.ascontiguousarray(column).tobytes())
            self._path = config.backup_dir / f"{run.replace('/', '-')}-{of.hexdigest()}.npz"

    @property
    def keeps(self) -> bool:
        """Whether there is a folder."""
        return self._path is not None

    def read(self) -> Progress | None:
        """None where nothing was kept. Raises OSError, ValueError for a file that is none of ours."""
        if self._path is None or not self._path.exists():
            return None
        with np.load(self._path, allow_pickle=False) as kept:
            variables = [kept[f"variable-{n}"] for n in range(int(kept["variables"]))]
            return Progress(
                variables,
                kept["loss"].tolist(),
                list(kept["logits"]),
                kept["losses"].tolist(),
                bool(kept["over"]),
            )

    def write(self, progress: Progress) -> None:
        """In place of the one before. Raises OSError."""
        if self._path is None:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        making = self._path.with_suffix(".making")
        arrays: dict[str, Any] = {f"variable-{n}": value for n, value in enumerate(progress.variables)}
        arrays |= {
            "variables": len(arrays), "loss": np.array(progress.loss, np.float64), "logits": _stacked(progress.logits),
            "losses": np.array(progress.losses, np.float64), "over": progress.over,
        }  # fmt: skip
        with making.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        making.replace(self._path)


def _stacked(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack(logits) if logits else np.zeros((0, 0), np.float32)
