"""Examples as sharded Parquet, and as batches for a training that never holds them all.

    part-00000-of-00004.parquet        rows in their order; every input a column, matrices as lists of fixed size
      row group 0 … k (GROUP_ROWS)     what is read at once

    epoch e:   groups in the order of (seed, e) ─▶ window of WINDOW_ROWS ─mixed─▶ batches ─skip step─▶ prefetch

The order of rows is a function of seed, epoch and step alone: it depends neither on threads nor on what was read
before, so a training goes on in the middle of an epoch. What is held is one window, a group and a few batches, however
many rows there are. Rows of one customer lie together in the files and are torn apart by the order of groups and the
window. NumPy mixes, not `tf.data`: its slices share the memory of what they were cut from, so that a row that waits in
a shuffled window keeps its whole group alive (150 groups instead of 16, measured).

What needs all rows at once (trees, the logistic start, scales, calibration) takes `sample`: whole customers by a
seeded hash, so that weights by customer mean the same. `only` gives some of the rows, with weights of their own: a fit
streams what it may know.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.record.replay import SNAPSHOT
from ebbtide.model.examples.examples import Examples, Outcomes

SHARD_ROWS = 65_536
GROUP_ROWS = 1_024
WINDOW_ROWS = 16_384
"""Rows that are mixed at once: neighbours in a batch come from so many groups, sixteen or more."""
PREFETCHED = 4
PLAIN = ("customer", "as_of", "cause", "label", "weight")
WEIGHT = "weight"
OUTCOMES = ("labels", "wait_ms", "seen_ms")
PERSON = "person"
TARGET = "target"
"""Which target the labels are of: the files' metadata say it."""


def write_shards(folder: Path, examples: Examples, shard_rows: int = SHARD_ROWS) -> None:
    """Write examples into a new folder, no row of which is lost to rounding. Raises OSError."""
    folder.mkdir(parents=True)
    n = len(examples)
    count = max(1, -(-n // shard_rows))
    weight = examples.weights()
    for number in range(count):
        rows = slice(number * shard_rows, (number + 1) * shard_rows)
        table = _table(examples, weight, rows)
        with _writer(folder / _name(number, count), table.schema) as writer:
            writer.write_table(table, GROUP_ROWS)


class ShardWriter:
    """Shards of examples that come piece by piece; one piece is held at a time. Each row weighs the same there: what it
    weighs is a matter of all the rows that are learned from. Raises OSError."""

    def __init__(self, folder: Path, shard_rows: int = SHARD_ROWS) -> None:
        folder.mkdir(parents=True)
        self._folder, self._shard_rows = folder, shard_rows
        self._paths: list[Path] = []
        self._open: pq.ParquetWriter | None = None
        self._rows = 0

    def append(self, examples: Examples) -> None:
        """Some thousand rows; a shard ends after the piece that fills it."""
        table = _table(examples, np.ones(len(examples), np.float32), slice(None))
        if self._open is None:
            self._paths.append(self._folder / f"making-{len(self._paths):05d}.parquet")
            self._open, self._rows = _writer(self._paths[-1], table.schema), 0
        self._open.write_table(table, GROUP_ROWS)
        self._rows += len(examples)
        if self._rows >= self._shard_rows:
            self._end()

    def done(self) -> "Shards":
        """All of them, under their names; at least one piece has come, if an empty one."""
        self._end()
        for number, path in enumerate(self._paths):
            path.rename(self._folder / _name(number, len(self._paths)))
        return Shards(self._folder)

    def _end(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None


def _name(number: int, count: int) -> str:
    return f"part-{number:05d}-of-{count:05d}.parquet"


def _table(examples: Examples, weight: NDArray[np.float32], rows: slice) -> Any:
    columns: dict[str, Any] = {name: getattr(examples, name)[rows] for name in PLAIN if name != WEIGHT}
    columns[WEIGHT] = weight[rows]
    columns |= {f"input.{name}": _column(column[rows]) for name, column in examples.inputs.items()}
    if examples.outcomes is not None:
        became = examples.outcomes
        columns |= {f"outcome.{name}": _column(getattr(became, name)[rows]) for name in OUTCOMES}
    if examples.person is not None:
        columns[PERSON] = examples.person[rows]
    return pa.table(columns).replace_schema_metadata({TARGET: str(examples.target)})


def _writer(path: Path, schema: Any) -> pq.ParquetWriter:
    # Bits as they are: a dictionary would take one NaN for another, and packing floats saves little.
    return pq.ParquetWriter(path, schema, use_dictionary=False, compression="NONE", write_page_checksum=True)


def read_shards(folder: Path) -> Examples:
    """All of it, bit for bit. Raises SpecError."""
    return Shards(folder).take(None)


class Shards:
    """The examples of a folder, read as they are asked for. Raises SpecError: a file is missing, cut short or changed.
    failed: what could not be read, for whoever is told by TensorFlow instead (`in_our_words`)."""

    def __init__(self, folder: Path, chosen: "_Chosen | None" = None) -> None:
        self.folder, self._chosen = folder, chosen
        self.failed: SpecError | None = None
        self._files = sorted(folder.glob("part-*.parquet"))
        if not self._files or len(self._files) != int(self._files[0].stem.rpartition("-")[2]):
            raise SpecError(
                f"{folder} lacks some of its shards", hint="make them again: remove the stage's artifact"
            )
        self._groups: list[tuple[int, int, int]] = []
        for number, path in enumerate(self._files):
            try:
                metadata = pq.ParquetFile(path).metadata
            except (pa.ArrowInvalid, OSError) as error:
                raise _damaged(path, error) from None
            self._groups += [
                (number, g, metadata.row_group(g).num_rows) for g in range(metadata.num_row_groups)
            ]
        self._schema = pq.read_schema(self._files[0])
        self.names = [name.removeprefix("input.") for name in self._schema.names if name.startswith("input.")]
        self._all = [name.removeprefix("input.") for name in self._schema.names]
        self._begins = np.cumsum([0, *(rows for _, _, rows in self._groups)])

    def __len__(self) -> int:
        return int(self._begins[-1]) if self._chosen is None else len(self._chosen.rows)

    @cached_property
    def customer(self) -> NDArray[np.int32]:
        """int32[n], held."""
        found: NDArray[np.int32] = self._held("customer")
        return found

    @cached_property
    def as_of(self) -> NDArray[np.int64]:
        """int64[n], ms UTC, held."""
        found: NDArray[np.int64] = self._held("as_of")
        return found

    @cached_property
    def snapshot(self) -> NDArray[np.bool_]:
        """bool[n], held: see `Examples.snapshot`."""
        rows: NDArray[np.bool_] = self._held("cause") == SNAPSHOT
        return rows

    def labels(self, target: int) -> NDArray[np.int8]:
        """int8[n] of a target of the spec, by its index."""
        column, at = self._label_of(target)
        found: NDArray[np.int8] = self._held(column, at)
        return found

    def only(self, rows: NDArray[np.int64], weight: NDArray[np.float32], target: int = 0) -> "Shards":
        """Of all, these rows alone (indices that rise), weighing so much each, labelled as a target sees them: for
        `batches`."""
        return Shards(self.folder, _Chosen(rows, weight, target))

    def _label_of(self, target: int) -> tuple[str, int]:
        """The column that has them, and which place of its lists; -1: it has no lists."""
        own = target == int(self._schema.metadata[TARGET.encode()])
        return ("label", -1) if own else ("outcome.labels", target)

    def _held(self, name: str, at: int = -1) -> NDArray[Any]:
        parts = []
        for path in self._files:
            column = _array(pq.read_table(path, columns=[name])[name])
            parts.append(column if at < 0 else column[:, at])
        return np.concatenate(parts)

    def take(self, rows: NDArray[np.bool_] | None) -> Examples:
        """The rows of a mask over all, or all of them."""
        parts, start = [], 0
        for number, group, count in self._groups:
            chosen = slice(None) if rows is None else np.flatnonzero(rows[start : start + count])
            start += count
            if rows is None or len(chosen):  # type: ignore[arg-type]  # an array where rows are chosen
                parts.append([column[chosen] for column in self._read(number, group)])
        if not parts:
            parts = [[column[:0] for column in self._read(0, 0)]] if self._groups else [self._empty()]
        columns = dict(zip(self._all, map(np.concatenate, zip(*parts, strict=True)), strict=True))
        inputs = {name: columns[name] for name in self.names}
        became = [columns[f"outcome.{name}"] for name in OUTCOMES if f"outcome.{name}" in columns]
        return Examples(
            columns["customer"], columns["as_of"], columns["cause"], columns["label"], inputs,
            Outcomes(*became) if became else None, int(self._schema.metadata[TARGET.encode()]), columns.get(PERSON),
        )  # fmt: skip

    def sample(self, rows_max: int, seed: int = 0) -> Examples:
        """Whole customers in a seeded order, as many as bring at most `rows_max` rows; at least one."""
        counts = np.bincount(self.customer)
        order = np.random.default_rng(seed).permutation(np.flatnonzero(counts))
        enough = max(1, int(np.searchsorted(np.cumsum(counts[order]), rows_max, side="right")))
        chosen = np.zeros(len(counts), np.bool_)
        chosen[order[:enough]] = True
        return self.take(chosen[self.customer])

    def batches(
        self, batch: int, seed: int, epoch: int, *, step: int = 0, workers: int = 1, worker: int = 0
    ) -> tf.data.Dataset:
        """Whole batches of (inputs, churned, weight) of one epoch from its `step` on. With `workers`, worker `worker`'s
        share: no row is in two."""
        target = self._chosen.target if self._chosen else int(self._schema.metadata[TARGET.encode()])
        label, place = self._label_of(target)
        needed = [f"input.{name}" for name in self.names] + [label, WEIGHT]
        empty = [_array(self._schema.empty_table()[name]) for name in needed]
        empty[-2] = empty[-2] if place < 0 else empty[-2][:, place]

        def rows_of(group: int) -> list[NDArray[Any]]:
            *columns, labels, weight = self._read(*self._groups[group][:2], needed)
            columns = [*columns, labels if place < 0 else labels[:, place], weight]
            if self._chosen is None:
                return columns
            rows, weights = self._chosen.within(int(self._begins[group]), len(weight))
            return [*(column[rows] for column in columns[:-1]), weights]

        def mixed() -> Iterator[tuple[NDArray[Any], ...]]:
            rng = np.random.default_rng((seed, epoch))
            order = rng.permutation(len(self._groups))[worker::workers]
            enough = max(WINDOW_ROWS, batch)
            window = _Window(empty, enough + GROUP_ROWS)
            for group in order.tolist():
                window.add(rows_of(group))
                if len(window) >= enough:
                    yield from window.batches(batch, rng)
            yield from window.batches(batch, rng)

        def targets(*columns: Any) -> Any:
            *inputs, labels, weight = columns
            churned = tf.cast(tf.equal(labels, 1), tf.float32)
            return dict(zip(self.names, inputs, strict=True)), churned, weight

        signature = tuple(tf.TensorSpec((batch, *each.shape[1:]), tf.as_dtype(each.dtype)) for each in empty)
        found = tf.data.Dataset.from_generator(mixed, output_signature=signature)
        return found.skip(step).map(targets).prefetch(PREFETCHED)

    def steps(self, batch: int) -> int:
        """Whole batches an epoch, of one worker."""
        return len(self) // batch

    def _empty(self) -> list[NDArray[Any]]:
        return [_array(self._schema.empty_table()[name]) for name in self._schema.names]

    def _read(self, number: int, group: int, names: list[str] | None = None) -> list[NDArray[Any]]:
        try:
            file = pq.ParquetFile(self._files[number], page_checksum_verification=True)
            table = file.read_row_group(group, names)
        except (pa.ArrowInvalid, OSError) as error:
            self.failed = _damaged(self._files[number], error)
            raise self.failed from None
        return [_array(table[name]) for name in names or table.column_names]


class _Window:
    """Rows that wait to be mixed, in memory of their own: a slice of what was read would keep all of it alive."""

    def __init__(self, empty: list[NDArray[Any]], rows_max: int) -> None:
        """empty: a column of each sort, no rows. rows_max: that lie here at most."""
        self._columns = [np.empty((rows_max, *column.shape[1:]), column.dtype) for column in empty]
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, columns: list[NDArray[Any]]) -> None:
        """Some rows more."""
        end = self._rows + len(columns[0])
        for held, column in zip(self._columns, columns, strict=True):
            held[self._rows : end] = column
        self._rows = end

    def batches(self, batch: int, rng: np.random.Generator) -> Iterator[tuple[NDArray[Any], ...]]:
        """All rows in a random order, in whole batches; what is left over stays."""
        order = rng.permutation(self._rows)
        whole = self._rows // batch * batch
        for start in range(0, whole, batch):
            yield tuple(held[order[start : start + batch]] for held in self._columns)
        rest = [held[order[whole:]] for held in self._columns]
        self._rows = 0
        self.add(rest)


class _Chosen(NamedTuple):
    """Rows of shards, indices that rise; what each weighs; the target that labels them."""

    rows: NDArray[np.int64]
    weight: NDArray[np.float32]
    target: int

    def within(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of a group that begins with row `first`, counted from there, and their weights."""
        begin, end = np.searchsorted(self.rows, (first, first + count))
        return self.rows[begin:end] - first, self.weight[begin:end]


def epochs_of(shards: Shards, batch: int, seed: int, epochs: int) -> tf.data.Dataset:
    """One epoch after the other, each in its own order."""
    parts: Iterator[tf.data.Dataset] = (shards.batches(batch, seed, epoch) for epoch in range(epochs))
    joined = next(parts)
    for part in parts:
        joined = joined.concatenate(part)
    return joined


@contextmanager
def in_our_words(stream: Shards | None) -> Iterator[None]:
    """Around whoever takes batches: raises SpecError for a shard that could not be read, where TensorFlow says that
    some function of Python failed."""
    try:
        yield
    except tf.errors.OpError:
        if stream is None or stream.failed is None:
            raise
        raise stream.failed from None


def _damaged(path: Path, error: Exception) -> SpecError:
    return SpecError(
        f"the shard {path} cannot be read: {str(error).splitlines()[0]}",
        hint="it was cut short or changed after it had been written: remove the artifact that it lies in, and the next "
        "run makes it anew",
    )


def _column(values: NDArray[Any]) -> Any:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1]
    )


def _array(column: Any) -> NDArray[Any]:
    joined = column.combine_chunks()
    if isinstance(joined, pa.ChunkedArray):
        joined = joined.chunk(0) if joined.num_chunks else pa.array([], joined.type)
    if not pa.types.is_fixed_size_list(joined.type):
        return np.asarray(joined.to_numpy(zero_copy_only=False))
    width = joined.type.list_size
    return np.asarray(joined.flatten().to_numpy(zero_copy_only=False)).reshape(-1, width)
