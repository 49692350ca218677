"""Warm-up records: a few real rows that travel with a model, so that its first request is not its slowest.

Two files, the same rows. `assets.extra/warmup.npz` is ours: records and times, as the scorer takes them.
`assets.extra/tf_serving_warmup_requests` is TF Serving's: a TFRecord file of PredictionLog messages, which it
plays by itself before a version becomes available. TF Serving's protos are not among our dependencies and the
four messages around the tensors are small, so their wire format is written here by hand:

    PredictionLog { predict_log(6): PredictLog { request(1): PredictRequest {
        model_spec(1): ModelSpec { name(1), signature_name(3) }, inputs(2): map<string, TensorProto> } } }
"""

from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Layout, Rows

FOLDER = "assets.extra"
ROWS_FILE = f"{FOLDER}/warmup.npz"
SERVING_FILE = f"{FOLDER}/tf_serving_warmup_requests"
ROWS_MAX = 64
"""TF Serving plays at most 1,000 requests; a few dozen rows already touch every part of the graph."""


def write(folder: Path, name: str, layout: Layout, rows: Rows, as_of: NDArray[np.int64]) -> None:
    """Write both files for the model `name` below `folder`: at most ROWS_MAX of rows[n], as_of[n]."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    rows, as_of = np.ascontiguousarray(rows[:ROWS_MAX]), np.asarray(as_of[:ROWS_MAX], np.int64)
    np.savez(folder / ROWS_FILE, rows=rows.view(np.uint8).reshape(len(rows), -1), as_of=as_of)
    inputs = {field: rows[field] for field in layout.model_fields} | {"as_of": as_of}
    with tf.io.TFRecordWriter(str(folder / SERVING_FILE)) as writer:
        for signature in ("score", "explain", "features"):
            writer.write(_prediction_log(name, signature, inputs))


def read(folder: Path, layout: Layout) -> tuple[Rows, NDArray[np.int64]]:
    """rows[n], as_of[n] as they were written."""
    with np.load(folder / ROWS_FILE, allow_pickle=False) as stored:
        raw, as_of = stored["rows"], stored["as_of"]
    return raw.reshape(-1).view(layout.dtype), as_of


def _prediction_log(name: str, signature: str, inputs: dict[str, NDArray[np.generic]]) -> bytes:
    spec = _field(1, name.encode()) + _field(3, signature.encode())
    entries = [
        _field(1, key.encode())
        + _field(2, tf.make_tensor_proto(np.ascontiguousarray(array)).SerializeToString())
        for key, array in inputs.items()
    ]
    request = _field(1, spec) + b"".join(_field(2, entry) for entry in entries)
    return _field(6, _field(1, request))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
