"""Event files to whole-log columns.

    files ─sources─▶ bytes ─delimited, json_lines, parquet─▶ blocks ─fast─▶ events ─sort─▶ EventLog
                                                               └ rows that are not surely events ─events/columns─▶
          └────────────────── of one file, by anybody (`read_files`) ──────────────┘

Arrival order is that of a mapped `arrival`, else of the stamped times; ties as they stand in the files. A row that
does not fit stops the reading, unless the caller asked for such rows to be counted; none is skipped in silence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.columns import time_reader
from ebbtide.featurestore.events.contract import TIME_MS_MAX, TIME_MS_MIN, Reason
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.files.block import ARRIVAL, Block, BlockReader, EventFile
from ebbtide.featurestore.files.event_log import EventLog, Problem, Problems, Remedies, with_column
from ebbtide.featurestore.files.sources import DAMAGES, event_files, format_of, packing_of
from ebbtide.featurestore.hashing import hash_texts
from ebbtide.featurestore.parts.engine import Engine
from ebbtide.featurestore.spec import Spec, load_spec
from ebbtide.featurestore.times.durations import format_duration

__all__ = ["EventLog", "read_log"]

Asked = tuple[EventFile, str]
"""A file, and its name in what is said of its rows: '' where it is the only one."""
BYTES_AN_EVENT = 200
"""In a file, packed or not, more than most have: reading is shared out where folding would be."""


def read_log(
    path: Path | str | Sequence[Path | str],
    spec: Spec | Path | str,
    *,
    tolerant: bool = False,
    progress: Callable[[float], None] | None = None,
    engine: Engine | None = None,
) -> EventLog:
    """Read a log of events: CSV, TSV, JSON (lines or an array) or Parquet, packed or not, under a spec's mapping.

        log = read_log("events.csv.gz", "spec.yaml")
        len(log), len(log.events.customers), log.known_until

    path: a file, a folder (all event files in it and below; `key=value` folders are columns), a pattern such as
    'events/2026-*.csv', or several of them, read one after the other. spec: a spec or the path of one. tolerant: rows
    that do not fit are counted in `log.problems` instead of refused. progress: called with the share that has been
    read, 0 to 1, ascending. engine: who reads files where there are several, all of which it must see under the same
    paths; default, and where it says that one part is enough: this process.

    Raises SpecError, one for a file, when it cannot be read, lacks a column that the spec needs or has it twice, or
    (unless tolerant) has rows that do not fit; the message names the file, the first rows by line, and the remedy.
    """
    spec = spec if isinstance(spec, Spec) else load_spec(spec)
    files = event_files(path)
    told = progress or (lambda _: None)
    gather = _Gather(spec)
    asked = [(file, str(file.path) if len(files) > 1 else "") for file in files]
    groups = _groups(asked, engine)
    if engine is None or len(groups) == 1:
        for number, (file, shown) in enumerate(asked):
            gather.join(_read(spec, file, shown, _share(told, number, len(files))), shown)
    else:
        read = chain.from_iterable(engine.map(partial(read_files, spec), groups, told))
        for (_, shown), of_file in zip(asked, read, strict=True):
            gather.join(of_file, shown)
    problems = gather.problems
    if problems.total and not tolerant:
        name = files[0].path if len(files) == 1 else f"{len(files)} files"
        raise SpecError(
            f"{name}: {problems.total:,} of {gather.rows:,} rows do not fit the spec: {problems.words()}",
            hint=gather.remedies.words(),
        )
    return gather.log()


def read_files(spec: Spec, asked: Sequence[Asked]) -> "list[FileEvents]":
    """Some files of a log, one after the other: what an engine does. Raises SpecError."""
    return [_read(spec, file, name, lambda _: None) for file, name in asked]


def _read(spec: Spec, file: EventFile, name: str, progress: Callable[[float], None]) -> "FileEvents":
    source = _opened(file, spec)
    found = _FileReader(spec, source, name)
    for block in _blocks(source):
        found.add(block)
        progress(block.share)
    return found.events


def _share(told: Callable[[float], None], number: int, of: int) -> Callable[[float], None]:
    return lambda share: told((number + share) / of)


def _groups(asked: Sequence[Asked], engine: Engine | None) -> list[Sequence[Asked]]:
    """Neighbours together, as many groups as the engine wants for so many bytes, of about the same size each."""
    sizes = np.array([file.path.stat().st_size if file.path.exists() else 0 for file, _ in asked], np.int64)
    count = 1 if engine is None else min(engine.parts(int(sizes.sum()) // BYTES_AN_EVENT), len(asked))
    middles = np.cumsum(sizes) - sizes / 2
    group = np.minimum((middles * count / max(int(sizes.sum()), 1)).astype(np.int64), count - 1)
    ends = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(asked)]
    return [asked[start:end] for start, end in pairwise(ends)]


def _opened(file: EventFile, spec: Spec) -> BlockReader:
    """The reader of a file's format. Raises SpecError."""
    kind = format_of(file.path)
    try:
        # The readers need pyarrow, which a worker, who imports this package and reads no file, never loads.
        if kind == "csv":
            from ebbtide.featurestore.files.delimited import DelimitedBlocks  # noqa: PLC0415 - pyarrow, see above

            return DelimitedBlocks(file, spec)
        if kind == "json":
            from ebbtide.featurestore.files.json_lines import JsonBlocks  # noqa: PLC0415 - pyarrow, see above

            return JsonBlocks(file, spec)
        from ebbtide.featurestore.files.parquet import ParquetBlocks  # noqa: PLC0415 - pyarrow, see above

        return ParquetBlocks(file, spec)
    except DAMAGES as error:
        raise _unreadable(file.path, error) from None


def _blocks(source: BlockReader) -> Any:
    try:
        yield from source.blocks()
    except DAMAGES as error:
        raise _unreadable(source.path, error) from None


def _unreadable(path: Path, error: Exception) -> SpecError:
    if isinstance(error, OSError) and error.strerror:
        return SpecError(f"cannot read {path}: {error.strerror}", hint="give --events FILE")
    with path.open("rb") as file:
        packing = packing_of(file.read(16))
    return SpecError(f"{path} is a damaged {packing or path.suffix} file: {error}", hint="copy it again")


@dataclass(slots=True)
class FileEvents:
    """What a file holds: its events block by block (`fast.Part`), which rows of the file they are, int64, when they
    arrived, int64, ms UTC; and what does not fit."""

    problems: Problems
    remedies: Remedies
    parts: list[Any] = field(default_factory=list)
    index: list[NDArray[np.int64]] = field(default_factory=list)
    arrived: list[NDArray[np.int64]] = field(default_factory=list)
    rows: int = 0
    ignored: int = 0


class _FileReader:
    """Blocks of a file, as they come, to its events."""

    def __init__(self, spec: Spec, source: BlockReader, name: str) -> None:
        from ebbtide.featurestore.files.fast import FastReader  # noqa: PLC0415 - pyarrow, see `_opened`

        self._spec, self._file = spec, name
        self._reader = FastReader(spec, source)
        self._columns = source.columns
        self._arrivals = time_reader(source.arrival, digits=source.text)
        self.events = FileEvents(Problems(source.unit), Remedies(spec))

    def add(self, block: Block) -> None:
        part = self._reader.read(block)
        bad = [Problem(*place, self._file) for place in block.bad]
        bad += [
            Problem(int(block.lines[r.index]), r.reason, with_column(r, self._columns), self._file)
            for r in part.rejected
        ]
        self.events.problems.add_unknown(part.unknown)
        self.events.ignored += part.ignored
        arrival = part.time
        if ARRIVAL in block.columns:
            part, arrival = self._with_arrival(block, part, bad)
        self.events.problems.add(sorted(bad))
        self.events.remedies.look(sorted(bad))
        self.events.parts.append(part)
        self.events.index.append(part.index + self.events.rows)
        self.events.arrived.append(arrival)
        self.events.rows += len(block) + len(block.bad)

    def _with_arrival(self, block: Block, part: Any, bad: list[Problem]) -> tuple[Any, NDArray[np.int64]]:
        """The events that have an arrival, and have not happened long after it: as on the stream."""
        from ebbtide.featurestore.files.values import read_times  # noqa: PLC0415 - pyarrow, see `_opened`

        arrival, sure = read_times(block.columns[ARRIVAL], self._arrivals, len(block))
        arrival, sure = arrival[part.index], sure[part.index]
        beyond = (arrival < TIME_MS_MIN) | (arrival > TIME_MS_MAX)
        future_max_ms = self._spec.future_max_ms
        wrong = ~sure | beyond | (part.stated - future_max_ms > arrival)
        for j in np.flatnonzero(wrong).tolist():
            line = int(block.lines[part.index[j]])
            if not sure[j]:
                reason, detail = Reason.WRONG_TYPE, f"arrival: expected {self._arrivals.words}"
            elif beyond[j]:
                reason, detail = Reason.TIMESTAMP_RANGE, "arrival is not between 1970 and 9999"
            else:
                reason, detail = (
                    Reason.FUTURE,
                    f"ts is more than {format_duration(future_max_ms)} after arrival",
                )
            bad.append(Problem(line, reason, detail, self._file))
        keep = np.flatnonzero(~wrong)
        return part.take(keep), arrival[keep]


class _Gather:
    """Files, in their order, to one log."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._parts: list[Any] = []
        self._arrived: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._index: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._ignored = 0
        self._starts: list[tuple[str, int]] = []
        self.rows = 0
        self.problems = Problems()
        self.remedies = Remedies(spec)

    def join(self, file: FileEvents, name: str) -> None:
        """What follows is of this file."""
        if name:
            self._starts.append((name, self.rows))
        self.problems.join(file.problems)
        self.remedies.join(file.remedies)
        self._parts += file.parts
        self._index += [index + self.rows for index in file.index]
        self._arrived += file.arrived
        self._ignored += file.ignored
        self.rows += file.rows

    def log(self) -> EventLog:
        import pyarrow as pa  # noqa: PLC0415 - see `_opened`

        arrival = np.concatenate(self._arrived)
        order = np.argsort(arrival, kind="stable")
        chosen = pa.array(order)

        def column(name: str, dtype: type) -> NDArray[Any]:
            return np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in self._parts)])[order]

        def text(arrays: list[Any]) -> Any:
            return pa.chunked_array(arrays, pa.string()).cast(pa.large_string()).combine_chunks().take(chosen)

        users = text([part.users for part in self._parts]).dictionary_encode()
        ids = None
        if any(part.ids is not None for part in self._parts):
            none = [
                pa.array([""] * len(part), pa.string()) if part.ids is None else part.ids
                for part in self._parts
            ]
            found = text(none).to_pylist()
            ids = found if any(found) else None
        value = np.concatenate(
            [np.empty((0, self._spec.value_columns)), *(part.value for part in self._parts)]
        )[order]
        events = EventBatch(
            customers=users.dictionary.to_pylist(),
            customer=users.indices.to_numpy().astype(np.int32),
            kind=column("kind", np.uint8),
            time=column("time", np.int64),
            value=np.ascontiguousarray(value[:, 0]),
            event_id=np.zeros(len(order), np.uint64) if ids is None else hash_texts(ids),
            position=np.concatenate(self._index)[order],
            more=value[:, 1:] if value.shape[1] > 1 else None,
        )
        return EventLog(
            events, ids, arrival[order], self.rows, self._ignored, self.problems, tuple(self._starts)
        )
