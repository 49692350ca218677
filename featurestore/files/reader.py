"""Event files to whole-log columns.

    file ─rows─▶ rows ─events/columns─▶ columns ─sort─▶ EventLog ─as_stream─▶ the stream that it would have been

It knows what arrival order is (a mapped `arrival`, else the stamped time; ties as they stand in the file), and which
reader a name asks for. It refuses to know formats, and what is done with a log. The invariant: a row that does not fit
stops the reading, unless the caller asked for such rows to be counted; none is skipped in silence.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.columns import ColumnReader, Columns, joined
from ebbtide.featurestore.events.contract import TIME_MS_MAX, TIME_MS_MIN, Reason
from ebbtide.featurestore.events.parse import batch_of
from ebbtide.featurestore.files.as_stream import contract_spec, records_of
from ebbtide.featurestore.files.event_log import EventLog, Problem, Problems
from ebbtide.featurestore.files.rows import Chunk, CsvRows, JsonRows, RowFile
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import format_duration
from ebbtide.featurestore.times.timestamps import TimeReader

__all__ = ["EventLog", "contract_spec", "open_rows", "read_events", "records_of"]

ENDINGS = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


def read_events(
    path: Path | str,
    spec: Spec,
    *,
    tolerant: bool = False,
    progress: Callable[[float], None] | None = None,
) -> EventLog:
    """Read an event file (CSV, JSON Lines, Parquet; gzipped or not) with the spec's mapping.

    Raises SpecError when it cannot be read, lacks a column, or, unless `tolerant`, has a row that does not fit; the
    message names the first ones. `progress` is called with the share of the file that has been read, 0 to 1.
    """
    source = open_rows(path, spec)
    gather = _Gather(spec, source)
    for chunk in source:
        gather.add(chunk)
        if progress is not None:
            progress(chunk.share)
    problems = gather.problems
    if problems.total and not tolerant:
        raise SpecError(
            f"{path}: {problems.total:,} of {gather.rows:,} rows do not fit the spec: {problems.words()}",
            hint="ebbtide spec check says more about the file",
        )
    return gather.log()


def open_rows(path: Path | str, spec: Spec) -> RowFile:
    """The rows of a file, by the format that its name ends in. Raises SpecError."""
    path = Path(path)
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".gzip")]
    file_format = ENDINGS.get(endings[-1]) if endings else None
    if file_format is None:
        hint = f"let its name end in one of {' '.join(ENDINGS)}, then .gz if it is gzipped"
        raise SpecError(f"{path}: cannot tell its format", hint=hint)
    try:
        if file_format == "csv":
            return CsvRows(path, spec)
        if file_format == "jsonl":
            return JsonRows(path, spec)
        from ebbtide.featurestore.files.parquet import ParquetRows  # noqa: PLC0415 - needs pyarrow, an extra

        return ParquetRows(path, spec)
    except ImportError:
        raise SpecError("Parquet files need pyarrow", hint="pip install 'ebbtide[train]'") from None
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror or error}", hint="give --events FILE") from None
    except (EOFError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}", hint="is it damaged, or not UTF-8?") from None


class _Gather:
    """Chunks of rows, as they come, to one log."""

    def __init__(self, spec: Spec, source: RowFile) -> None:
        self._columns = ColumnReader(spec, mapping=source.mapping, text=source.text)
        self._arrivals = TimeReader(source.arrival_format, digits=source.text)
        self._future_max_ms = spec.future_max_ms
        self._parts: list[Columns] = []
        self._arrived: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._ignored = 0
        self.rows = 0
        self.problems = Problems(source.unit)

    def add(self, chunk: Chunk) -> None:
        columns = self._columns.read(chunk.rows)
        bad = [Problem(*place) for place in chunk.bad]
        bad += [Problem(chunk.lines[r.index], r.reason, r.detail) for r in columns.rejected]
        self.problems.add_unknown(columns.unknown)
        self._ignored += len(columns.ignored)
        arrival = columns.time
        if chunk.arrivals is not None:
            columns, arrival = self._with_arrival(chunk, chunk.arrivals, columns, bad)
        self.problems.add(sorted(bad))
        self._parts.append(replace(columns, index=columns.index + self.rows))
        self._arrived.append(arrival)
        self.rows += len(chunk.rows) + len(chunk.bad)

    def _with_arrival(
        self, chunk: Chunk, arrivals: list[object], columns: Columns, bad: list[Problem]
    ) -> tuple[Columns, NDArray[np.int64]]:
        """The events that have an arrival, and have not happened long after it: as on the stream."""
        arrival, unreadable = self._arrivals.read([arrivals[i] for i in columns.index.tolist()])
        beyond = (arrival < TIME_MS_MIN) | (arrival > TIME_MS_MAX)
        wrong = beyond | (columns.stated - self._future_max_ms > arrival)
        for j in np.flatnonzero(wrong).tolist():
            line = chunk.lines[columns.index[j]]
            if j in unreadable:
                bad.append(Problem(line, Reason.WRONG_TYPE, f"arrival: expected {self._arrivals.words}"))
            elif beyond[j]:
                bad.append(Problem(line, Reason.TIMESTAMP_RANGE, "arrival is not between 1970 and 9999"))
            else:
                late = format_duration(self._future_max_ms)
                bad.append(Problem(line, Reason.FUTURE, f"ts is more than {late} after arrival"))
        keep = np.flatnonzero(~wrong)
        return columns.take(keep), arrival[keep]

    def log(self) -> EventLog:
        arrival = np.concatenate(self._arrived)
        order = np.argsort(arrival, kind="stable")
        whole = joined(self._parts).take(order)
        events = batch_of(whole, whole.index)
        return EventLog(events, whole.ids, arrival[order], self.rows, self._ignored, self.problems)
