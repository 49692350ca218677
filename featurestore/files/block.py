"""Consecutive rows of an event file as columns: what every format is read into.

Which columns of a file a spec needs is decided here, too, and is the same for all formats with columns: a field of the
contract is the column that the mapping names, and what a kind reads as `properties.<field>` is the column
`properties.<field>` or just `<field>`. Columns that nothing needs are never parsed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.contract import Reason
from ebbtide.featurestore.spec import Mapping, Spec

ARRIVAL = "arrival"
BadRow = tuple[int, Reason, str]
"""Line, reason and detail of what is no row at all."""


@dataclass(frozen=True, slots=True)
class Block:
    """n consecutive rows.

    columns: by name: a field of the contract, 'properties.<path>', or 'arrival'; each an Arrow array of n, or a list
             of n where the rows differ in type; a field that the file lacks has none
    rows:    the rows at some indices, as the row's own reader takes them
    lines:   int64[n], where each stands in its file
    share:   how much of the file has been read, 0 to 1
    odd:     bool[n], rows that only their own reader can judge; None: no such row
    bad:     what is no row at all
    """

    columns: dict[str, Any]
    rows: Callable[[NDArray[np.int64]], list[Any]]
    lines: NDArray[np.int64]
    share: float
    odd: NDArray[np.bool_] | None = None
    bad: list[BadRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True, slots=True)
class EventFile:
    """One file to read, and the values that its folders' names give it (Hive's key=value; None: no value)."""

    path: Path
    partition: dict[str, str | None] = field(default_factory=dict)


class BlockReader(ABC):
    """An event file under a spec; iterate over its blocks once.

    `unit`: what its rows are numbered in. `text`: every field is text, so numbers are read from text. `mapping`: where
    `Block.rows` hold the contract's fields; `composite`: where those that make a customer, if several. `arrival`: how
    arrivals are written. `columns`: the file's own name of each name in `Block.columns`."""

    unit: ClassVar[str] = "line"
    text: ClassVar[bool] = False

    def __init__(self, file: EventFile, spec: Spec) -> None:
        self.path, self.spec, self.partition = file.path, spec, file.partition
        # Columns carry the contract's own names.
        given = spec.mapping
        self.mapping = Mapping(ts_format=given.ts_format, ts_unit=given.ts_unit, ts_origin=given.ts_origin)
        self.composite = None if spec.customer is None else spec.customer.in_contract
        self.arrival = given
        self.columns: dict[str, str] = {}

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The file's rows, once. Raises SpecError, OSError, EOFError or zlib.error."""

    def wanted(self, found: Sequence[str], has: Callable[[str], bool]) -> dict[str, str]:
        """Column of each name that `Block.columns` is to have.

        Raises SpecError that names every column that the spec needs and the file lacks, or has twice."""
        mapping, missing, columns = self.spec.mapping, [], {}
        reads = {value.path for kind in self.spec.kinds for value in kind.readings}
        customer = self.spec.customer_fields
        fields = {name: getattr(mapping, name) for name in ("type", "ts", "event_id", "value")}
        for name, column in {**customer, **fields}.items():
            if has(column):
                columns[name] = column
            elif name in (*customer, "type", "ts") or column != name or name in reads:
                missing.append(f"{column!r} for {name}")
        for value in sorted(reads - {"value"}):
            path = value.removeprefix("properties.")
            places = [column for column in (f"{mapping.properties}.{path}", path) if has(column)]
            if places:
                columns[value] = places[0]
            else:
                missing.append(f"{path!r} for {value}")
        if mapping.arrival is not None:
            if has(mapping.arrival):
                columns[ARRIVAL] = mapping.arrival
            else:
                missing.append(f"{mapping.arrival!r} for arrival")
        if missing:
            there = ", ".join(map(repr, found)) or "none: is it empty?"
            near = _nearly(missing, found)
            hint = f"the spec's mapping says which column holds what{near}"
            none_known = self.text and not columns and not near
            if not found:
                hint = "copy it again, or leave it out"
            elif none_known and len(found) > 1:
                hint += "; is that a row? Then write a line with the columns' names above it"
            elif none_known:
                hint += "; is that a title? The first line is the columns' names, with one of , ; | or tabs between"
            raise SpecError(f"{self.path} has no column {', none '.join(missing)}; it has {there}", hint=hint)
        twice = sorted({column for column in columns.values() if _times_in(found, column) > 1})
        if twice:
            raise SpecError(
                f"{self.path} has the column {', '.join(map(repr, twice))} more than once",
                hint="which one is meant? Rename the other, or leave it out",
            )
        self.columns = columns
        return columns


def rows_of_columns(columns: dict[str, Any], chosen: NDArray[np.int64]) -> list[Any]:
    """One dict a row under the contract's names, from columns by name."""
    import pyarrow as pa  # noqa: PLC0415 - the worker imports this package and reads no file

    taken = {
        name: column.take(pa.array(chosen)).to_pylist() for name, column in columns.items() if name != ARRIVAL
    }
    rows: list[dict[str, Any]] = [{} for _ in chosen]
    for name, values in taken.items():
        *outer, last = name.split(".")
        for row, value in zip(rows, values, strict=True):
            place = row
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = value
    return rows


def _nearly(missing: Sequence[str], found: Sequence[str]) -> str:
    """Columns that differ from the missing ones in case, blanks or quotes alone: most likely what was meant."""
    bare = {name.casefold().strip(" '\"\u200b\ufeff#"): name for name in found}
    pairs = [(one.split("'")[1], one.rpartition(" for ")[2]) for one in missing]
    meant = [f"{name}: {bare[column.casefold()]!r}" for column, name in pairs if column.casefold() in bare]
    return f"; did you mean {', '.join(meant)}?" if meant else ""


def _times_in(found: Sequence[str], column: str) -> int:
    return found.count(column) or found.count(column.split(".", maxsplit=1)[0])
