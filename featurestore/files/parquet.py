"""Parquet event files as blocks.

What a typed column already says is not read again as text: timestamps and dates are times whatever the mapping's time
format, in UTC where they have no zone; whole-number ids are their digits; NaN, which is how data frames write what is
missing, is missing. As engines write it: text as bytes without the mark of text (UTF-8, or an error), numbers as
decimals, times as INT96, UUIDs as what they are, columns as dictionaries, fields in structs (found by dotted path).
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from ebbtide.featurestore.customer import FIELDS
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.block import ARRIVAL, Block, BlockReader, EventFile, rows_of_columns
from ebbtide.featurestore.files.sources import ByteSource, refuse_other_kinds
from ebbtide.featurestore.spec import Mapping, Spec

BLOCK_ROWS = 16_384
_TEXTS = (*FIELDS, "event_id", "type")


class ParquetBlocks(BlockReader):
    """Typed columns, found by name or by dotted path into structs."""

    unit = "row"

    def __init__(self, file: EventFile, spec: Spec) -> None:
        super().__init__(file, spec)
        self._source = ByteSource(file.path, text=False)
        try:
            # INT96 in nanoseconds ends in 2262, and what lies beyond would come out as another century.
            self._parquet = parquet.ParquetFile(
                self._source.file if self._source.file.seekable() and not _gzipped(self._source)
                else io.BytesIO(self._source.file.read()),
                coerce_int96_timestamp_unit="us",
            )  # fmt: skip
        except pa.ArrowInvalid as error:
            raise _not_parquet(self._source, error) from None
        schema = self._parquet.schema_arrow
        known = [*schema.names, *(key for key in self.partition if key not in schema.names)]
        self._columns = self.wanted(
            known, lambda name: name in self.partition or _type_of(schema, name) is not None
        )
        self._own = {name: column for name, column in self._columns.items() if _has(schema, column)}
        if self._is_time("ts"):
            self.mapping = Mapping(ts_format="ms")
        if self._is_time(ARRIVAL):
            self.arrival = Mapping(ts_format="ms")
        for name in (*FIELDS, "event_id"):
            kind = _type_of(schema, self._own.get(name, ""))
            if kind is not None and (
                pa.types.is_floating(kind) or (pa.types.is_decimal(kind) and kind.scale > 0)
            ):
                raise SpecError(
                    f"{self.path}: column {self._own[name]!r} holds fractions ({kind}), not ids",
                    hint="write it as text or whole numbers: a missing id in a data frame makes fractions of all",
                )

    def _is_time(self, name: str) -> bool:
        kind = _type_of(self._parquet.schema_arrow, self._own.get(name, ""))
        return kind is not None and _is_time(kind)

    def blocks(self) -> Iterator[Block]:
        done, wanted = 0, list(dict.fromkeys(self._own.values()))
        try:
            for batch in self._parquet.iter_batches(BLOCK_ROWS, columns=wanted):
                n = len(batch)
                columns = {name: self._plain(batch, name) for name in self._columns}
                lines = np.arange(done + 1, done + n + 1)
                done += n

                def rows(chosen: NDArray[np.int64], columns: dict[str, Any] = columns) -> list[Any]:
                    return rows_of_columns(columns, chosen)

                yield Block(columns, rows, lines, done / max(1, self._parquet.metadata.num_rows))
        except pa.ArrowInvalid as error:
            raise SpecError(f"{self.path}: damaged after row {done:,}: {error}") from None

    def _plain(self, batch: Any, name: str) -> Any:
        column = self._columns[name]
        if name not in self._own:
            return pa.array([self.partition[column]] * len(batch), pa.string())
        values = _found(batch, column)
        if name in _TEXTS and (pa.types.is_decimal(values.type) or pa.types.is_integer(values.type)):
            return values.cast(pa.string())
        where = f"{self.path}: column {column!r}"
        if name in ("ts", ARRIVAL):
            _refuse_coarse(values, where)
        return plain(values, where)


def plain(values: Any, where: str) -> Any:
    """A column as text, whole numbers (times as ms UTC), doubles, or what it is; null where missing.

    Raises SpecError, which begins with `where`, for bytes that are no text."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values.type, pa.UuidType):
        return pa.array([None if one is None else str(one) for one in values.to_pylist()], pa.string())
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if _is_time(kind):
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        return values.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64())
    if pa.types.is_decimal(kind):
        if kind.scale == 0 and kind.precision <= 18:
            return values.cast(pa.int64())
        # By way of text: Arrow's own cast makes 19.900000000000002 of 19.90.
        return values.cast(pa.string()).cast(pa.float64())
    if pa.types.is_integer(kind):
        return values if pa.types.is_uint64(kind) else values.cast(pa.int64())
    if pa.types.is_floating(kind):
        values = values.cast(pa.float64())
        return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    if pa.types.is_null(kind) or pa.types.is_string(kind) or _is_bytes(kind):
        try:
            return values.cast(pa.string())
        except pa.ArrowInvalid:
            raise SpecError(f"{where} holds bytes that are not UTF-8 text", hint="write it as text") from None
    return values


def _refuse_coarse(times: Any, where: str) -> None:
    """Raises SpecError for times in floats of 32 or 16 bits that are beyond what these hold exactly: seconds since 1970
    come out two minutes apart."""
    kind = times.type.value_type if pa.types.is_dictionary(times.type) else times.type
    if not (pa.types.is_float32(kind) or pa.types.is_float16(kind)):
        return
    exact = 1 << (24 if pa.types.is_float32(kind) else 11)
    if np.nanmax(np.abs(plain(times, where).to_numpy(zero_copy_only=False)), initial=0) > exact:
        raise SpecError(
            f"{where} holds times as {kind}, which is exact up to {exact:,} only",
            hint="write whole numbers, doubles or timestamps",
        )


def _not_parquet(source: ByteSource, error: Exception) -> SpecError:
    """What a file is that has no Parquet's end."""
    source.file.seek(0)
    start = source.file.read(16)
    if not start:
        return SpecError(f"{source.path} is empty", hint="copy it again, or leave it out")
    if start.startswith(b"PAR1"):
        return SpecError(f"{source.path} is Parquet cut off or damaged: {error}", hint="copy it again")
    try:
        refuse_other_kinds(source.path, start)
    except SpecError as other:
        return other
    return SpecError(f"{source.path} is not Parquet: {error}", hint="let its name end as what it is")


def _gzipped(source: ByteSource) -> bool:
    return not isinstance(getattr(source.file, "raw", None), io.FileIO)


def _found(batch: Any, column: str) -> Any:
    if column in batch.schema.names:
        return batch.column(column)
    first, *rest = column.split(".")
    return pc.struct_field(batch.column(first), rest)


def _has(schema: Any, name: str) -> bool:
    return _type_of(schema, name) is not None


def _type_of(schema: Any, name: str) -> Any:
    """The Arrow type of a column or of a struct's field, None where there is none."""
    if name in schema.names:
        return schema.types[schema.names.index(name)]
    first, *rest = name.split(".")
    if not rest or first not in schema.names:
        return None
    found = schema.types[schema.names.index(first)]
    for part in rest:
        if not pa.types.is_struct(found) or found.get_field_index(part) < 0:
            return None
        found = found.field(part).type
    return found


def _is_time(kind: Any) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_bytes(kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_large_string(kind) or types.is_string_view(kind) or types.is_binary(kind)
        or types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind)
    )  # fmt: skip
