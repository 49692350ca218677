"""Parquet event files as chunks of rows.

It knows Arrow's types and refuses to know a row's meaning, as `rows.py` does, of which it is the third format.
What a typed column already says is not read again as text: timestamps and dates are times whatever the mapping's time
format; whole-number ids are their digits; NaN, which is how data frames write what is missing, is missing.

The only module that imports pyarrow; so only who reads Parquet needs the extra `train`.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.rows import CHUNK_ROWS, Chunk, RowFile
from ebbtide.featurestore.spec import Spec


class ParquetRows(RowFile):
    """Typed columns, found by name or by dotted path into structs."""

    unit = "row"

    def __init__(self, path: Path, spec: Spec) -> None:
        super().__init__(path, spec)
        try:
            source = io.BytesIO(self._file.read()) if self._gzipped else self._raw
            self._parquet = parquet.ParquetFile(source)
        except pa.ArrowInvalid as error:
            raise SpecError(f"{path} is not Parquet: {error}") from None
        schema = self._parquet.schema_arrow
        self._columns = self._wanted(lambda name: _type_of(schema, name) is not None, schema.names)
        if _is_time(_type_of(schema, spec.mapping.ts)):
            self.mapping = self.mapping.model_copy(update={"ts_format": "ms"})
        if spec.mapping.arrival and _is_time(_type_of(schema, spec.mapping.arrival)):
            self.arrival_format = "ms"
        for name in (spec.mapping.user_id, spec.mapping.event_id):
            kind = _type_of(schema, name)
            if kind is not None and pa.types.is_floating(kind):
                raise SpecError(
                    f"{path}: column {name!r} holds fractions ({kind}), not ids", hint="write it as text"
                )

    def _chunks(self) -> Iterator[Chunk]:
        wanted, done = self._columns, 0
        ids = {wanted.fields["user_id"], wanted.fields.get("event_id"), wanted.fields["type"]}
        for batch in self._parquet.iter_batches(CHUNK_ROWS, columns=wanted.columns):
            columns = {name: _plain(batch, name, as_text=name in ids) for name in wanted.columns}
            arrivals = columns[wanted.arrival] if wanted.arrival else None
            rows = wanted.rows(columns)
            lines = range(done + 1, done + len(rows) + 1)
            done += len(rows)
            yield Chunk(rows, lines, arrivals, done / max(1, self._parquet.metadata.num_rows))


def _type_of(schema: Any, name: str) -> Any:
    """The Arrow type of a column or of a struct's field, None where there is none."""
    if name in schema.names:
        return schema.field(name).type
    found, (first, *rest) = None, name.split(".")
    if rest and first in schema.names:
        found = schema.field(first).type
        for part in rest:
            if not pa.types.is_struct(found) or found.get_field_index(part) < 0:
                return None
            found = found.field(part).type
    return found


def _is_time(kind: Any) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _plain(batch: Any, name: str, *, as_text: bool) -> list[Any]:
    """A column as Python values: text, numbers (times as ms UTC), None where missing."""
    if name in batch.schema.names:
        values = batch.column(name)
    else:
        first, *rest = name.split(".")
        values = pc.struct_field(batch.column(first), rest)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if _is_time(kind):
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        values = values.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64())
    elif pa.types.is_decimal(kind):
        values = values.cast(pa.float64())
    elif as_text and pa.types.is_integer(kind):
        values = values.cast(pa.string())
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return list(values.to_pylist())
