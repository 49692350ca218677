"""Examples as a Parquet file, for somebody else's tools.

The file holds customers' ids in clear beside what they did and what became of them, so it is readable by its owner
alone (mode 0600), whatever the umask says. The only module of `model` that needs pyarrow.
"""

import os
from collections.abc import Mapping
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
MODEL = "model"
REASONS = 3
SEQUENCE = pa.list_(
    pa.struct(
        {"kind": pa.string(), "count": pa.float64(), "value": pa.float64(), "gap_s": pa.float64()}.items()
    )
)


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
    _write(path, pa.table(columns))


def write_scored(
    path: Path,
    examples: Examples,
    names: list[str],
    scores: Mapping[str, NDArray[np.float64]],
    reasons: tuple[NDArray[np.float32], NDArray[np.float32]],
    spec: Spec,
) -> None:
    """Write scored examples: customer, as_of, cause, label; `probability` and each baseline's as `probability_<name>`;
    `reasons`, the REASONS strongest as {feature, value, contribution}; `sequence`, the ring's entries as {kind, count,
    value, gap_s}, the latest last. `reasons`: values and contributions float32[n, F]. Raises ModelUnwritable."""
    listed = [feature.name for feature in features(spec)]
    values, contributions = reasons
    strongest = np.argsort(-np.abs(contributions), axis=1)[:, :REASONS]
    kinds = [kind.name for kind in spec.kinds]
    inputs = examples.inputs
    columns: dict[str, Any] = {
        "customer": pa.array(names).take(pa.array(examples.customer)),
        "as_of": pa.array(examples.as_of, pa.timestamp("ms", tz="UTC")),
        "cause": _in_words(examples.cause, CAUSES),
        "label": _in_words(examples.label, LABELS),
    }
    for name, p in scores.items():
        columns["probability" if name == MODEL else f"probability_{name}"] = p
    columns["reasons"] = pa.array(
        [
            [
                {
                    "feature": listed[f],
                    "value": float(values[i, f]),
                    "contribution": float(contributions[i, f]),
                }
                for f in row
            ]
            for i, row in enumerate(strongest.tolist())
        ]
    )
    columns["sequence"] = pa.array(
        [
            [
                {
                    "kind": kinds[int(kind) - 1],
                    "count": float(inputs["count"][i, at]),
                    "value": float(inputs["value"][i, at]),
                    "gap_s": float(inputs["gap"][i, at]),
                }
                for at, kind in enumerate(row)
                if kind > 0
            ]
            for i, row in enumerate(inputs["kind"].tolist())
        ],
        SEQUENCE,
    )
    _write(path, pa.table(columns))


def _write(path: Path, table: pa.Table) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, MODE), "wb") as file:
            os.fchmod(file.fileno(), MODE)  # before a byte of ours is in it
            file.truncate()
            pq.write_table(table, file, compression="zstd")
    except OSError as error:
        raise ModelUnwritable(
            f"the rows cannot be written to {path}: {error}", hint="choose another --rows"
        ) from None


def _in_words(codes: NDArray[Any], words: dict[int, str]) -> Any:
    return pa.array([words[code] for code in codes.tolist()]).dictionary_encode()
