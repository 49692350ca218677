"""Examples as a Parquet file, for somebody else's tools.

The file holds customers' ids in clear beside what they did and what became of them, so it is readable by its owner
alone (mode 0600), whatever the umask says. The only module of `model` that needs pyarrow.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.replay import CAUSES
from ebbtide.featurestore.spec import Spec
from ebbtide.model.errors import ModelUnwritable
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.labels import CANCELLED, CHURNED, STAYED

LABELS = {STAYED: "stayed", CHURNED: "churned", CANCELLED: "left"}
MODE = 0o600


def write_rows(
    path: Path, examples: Examples, names: list[str], slices: NDArray[np.str_], spec: Spec
) -> None:
    """Write the examples: customer, as_of, cause, label, weight, slice, then every feature by its name.

    `names`: the log's customer ids. `label` is `churned`, `stayed` or `left` in words, as `cause` is. A file that is
    there already is written anew and loses its looser rights. Raises ModelUnwritable.
    """
    columns: dict[str, Any] = {
        "customer": pa.array(names).take(pa.array(examples.customer)),
        "as_of": pa.array(examples.as_of, pa.timestamp("ms", tz="UTC")),
        "cause": _in_words(examples.cause, CAUSES),
        "label": _in_words(examples.label, LABELS),
        "weight": examples.weights(),
        "slice": pa.array(slices).dictionary_encode(),
    }
    for i, feature in enumerate(features(spec)):
        columns[feature.name] = examples.features[:, i]
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, MODE), "wb") as file:
            os.fchmod(file.fileno(), MODE)  # before a byte of ours is in it
            file.truncate()
            pq.write_table(pa.table(columns), file, compression="zstd")
    except OSError as error:
        raise ModelUnwritable(
            f"the rows cannot be written to {path}: {error}", hint="choose another --rows"
        ) from None


def _in_words(codes: NDArray[Any], words: dict[int, str]) -> Any:
    return pa.array([words[code] for code in codes.tolist()]).dictionary_encode()
