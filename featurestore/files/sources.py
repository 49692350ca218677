"""Where events lie: the files behind what a user names, and their bytes as UTF-8.

A user names a file, a folder, a pattern, or several of them. A folder stands for all the event files in it and below
it, in the order of their paths, links followed; what begins with `.` or `_` is an engine's own (`_SUCCESS`, checksums)
and is left out, and `key=value` in a folder's name is a column of the files below (Hive's partitions), however they
were named. Refused is what would be read short or twice:

    a link to nothing, or to a folder above it; a folder that may not be read
    one file under two names, as a link, or packed and unpacked
    a folder whose own log says which of its files count (Delta, Hudi, Iceberg), at any depth: others were deleted

How bytes are packed is told by the first of them, whatever the name says; what is packed twice, or is another kind of
file under a text file's name, is refused in words that name it.
"""

import bz2
import codecs
import glob
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.block import EventFile

ENDINGS = {
    ".csv": "csv", ".tsv": "csv", ".psv": "csv", ".txt": "csv",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_PATTERN = set("*?[")
_TABLES = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata/*.metadata.json": "Iceberg"}
"""Tables by what lies in their folder."""

PACKED = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd", ".zip")
DAMAGES = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What reading a damaged file raises, in whatever packing."""
_MAGIC = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip",
    **{bytes([low, 0x2A, 0x4D, 0x18]): "zstd" for low in range(0x50, 0x60)},  # a frame to be skipped, as pzstd begins
}  # fmt: skip
_EXPORT = "export it as CSV, JSON lines or Parquet"
_DOWNLOAD = "was it downloaded without a log-in, or in vain? Look into it"
_OTHERS = {
    b"PAR1": ("Parquet", "let its name end in .parquet"),
    b"Obj\x01": ("Avro", _EXPORT), b"ORC": ("ORC", _EXPORT), b"ARROW1": ("an Arrow file (Feather)", _EXPORT),
    b"FEA1": ("an Arrow file (Feather)", _EXPORT), b"\xff\xff\xff\xff": ("an Arrow stream", _EXPORT),
    b"SQLite format 3\x00": ("an SQLite database", _EXPORT), b"%PDF": ("PDF", _EXPORT),
    b"\xd0\xcf\x11\xe0": ("an old office file (.xls)", "save it as CSV in UTF-8"),
    b"\x04\x22\x4d\x18": ("packed by lz4", "unpack it: unlz4"),
    b"\x1f\x9d": ("packed by compress", "unpack it: gunzip"), b"7z\xbc\xaf": ("a 7z archive", "unpack it"),
    b"RDX": ("data of R (save)", _EXPORT), b"X\n\x00\x00": ("data of R (saveRDS)", _EXPORT),
    b"<stata_dta>": ("a data set of Stata", _EXPORT), b"$FL2": ("a data set of SPSS", _EXPORT),
    b"\x00" * 12 + b"\xc2\xea\x81\x60": ("a data set of SAS", _EXPORT), b"\x89HDF": ("HDF5", _EXPORT),
    b"\x80\x04\x95": ("a Python pickle", _EXPORT), b"\x80\x05\x95": ("a Python pickle", _EXPORT),
    b"PGCOPY\n": ("PostgreSQL's binary COPY", "COPY … TO … WITH (FORMAT csv, HEADER)"),
    b"PGDMP": ("a dump of PostgreSQL", "COPY … TO … WITH (FORMAT csv, HEADER)"),
    b"<!doctype": ("a web page", _DOWNLOAD), b"<html": ("a web page", _DOWNLOAD), b"<?xml": ("XML", _DOWNLOAD),
    b"version https:/": ("the pointer of a Git LFS file, not the file", "git lfs pull"),
}  # fmt: skip
"""Other kinds of files by their first bytes, in lower case where they are text: what they are, and what to do."""


def format_of(path: Path) -> str:
    """csv, json or parquet, by the file's name. Raises SpecError."""
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in PACKED]
    found = ENDINGS.get(endings[-1]) if endings else None
    if found is None:
        hint = f"let its name end in one of {' '.join(ENDINGS)}, then {' '.join(PACKED)} if it is packed"
        raise SpecError(f"{path}: cannot tell its format", hint=hint)
    return found


def _refuse_unknown(path: Path) -> None:
    """Raises SpecError where a file's name says no format that is read; of another kind of file, which one it is."""
    try:
        format_of(path)
    except SpecError:
        if not path.exists():
            raise SpecError(
                f"cannot read {path}: there is no such file or folder", hint="give --events FILE"
            ) from None
        with suppress(*DAMAGES), closing(ByteSource(path, text=False)) as source:
            refuse_other_kinds(path, source.file.read(512))
        raise


def event_files(paths: Path | str | Sequence[Path | str]) -> list[EventFile]:
    """Every file behind what was named, in order. Raises SpecError when there is none or one of no known format."""
    named = [paths] if isinstance(paths, Path | str) else list(paths)
    files = [file for path in named for file in _files(Path(path))]
    if not files:
        raise SpecError("no event file was named", hint="give --events FILE")
    for file in files:
        _refuse_unknown(file.path)
    _refuse_twins([file.path for file in files])
    return files


def _files(path: Path) -> Iterator[EventFile]:
    if path.is_dir():
        files = list(_below(path))
        if not files:
            raise SpecError(f"{path} is a directory without event files")
        yield from (EventFile(found, _partition(found)) for found in files)
    elif not path.exists() and _PATTERN & set(str(path)):
        first = next(i for i, part in enumerate(path.parts) if _PATTERN & set(part))
        base, pattern = Path(*path.parts[:first]), str(Path(*path.parts[first:]))
        names = glob.glob(pattern, root_dir=base, recursive=True, include_hidden=True)  # noqa: PTH207 - Path.glob passes over links to folders under ** before Python 3.13
        found = sorted(base / name for name in names if not _hidden(Path(name)))
        if not found:
            raise SpecError(f"no file matches {path}")
        # A folder that matches, and what in it matches, too, is read once.
        yield from {file.path: file for one in found for file in _files(one)}.values()
    else:
        yield EventFile(path, _partition(path))


def _below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files in a folder and below it, in the order of their paths. Raises SpecError for what cannot be walked."""
    for log, table in _TABLES.items():
        if any(folder.glob(log)):
            raise SpecError(
                f"{folder} is a {table} table, whose log says which of its files count",
                hint="export it, e.g. as plain Parquet, and name that folder",
            )
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise SpecError(f"cannot read {folder}: {error.strerror}", hint="mend it, or move it away") from None
    above |= {folder.resolve()}
    for one in found:
        if _hidden(Path(one.name)):
            continue
        if one.is_dir():
            if one.resolve() in above:
                raise SpecError(f"{one} is a link to a folder that it lies in", hint="remove it")
            yield from _below(one, above)
        elif one.is_file():
            yield one
        else:
            words = "a link to nothing" if one.is_symlink() else "no file"
            raise SpecError(f"{one} is {words}", hint="mend it, or move it away")


def _refuse_twins(files: Sequence[Path]) -> None:
    """Raises SpecError where one file is there twice, by another name, a link, or packed and unpacked."""
    bare: dict[Path, Path] = {}
    for path in files:
        name = path.resolve()
        while name.suffix.lower() in PACKED:
            name = name.with_suffix("")
        if name in bare:
            raise SpecError(
                f"{path} and {bare[name]} are one file, linked or packed: its events would count twice",
                hint="name it once, or move one of them away",
            )
        bare[name] = path


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in path.parts)


def _partition(path: Path) -> dict[str, str | None]:
    pairs = [part.split("=", 1) for part in path.parts[:-1] if "=" in part]
    return {unquote(key): None if value == _NO_VALUE else unquote(value) for key, value in pairs}


class ByteSource:
    """A file's bytes, unpacked and as UTF-8 without a byte order mark; `share`: how much has been read, 0 to 1."""

    def __init__(self, path: Path, *, text: bool) -> None:
        """`text`: marks are understood and taken off. Raises OSError, SpecError."""
        self.path = path
        self._size = max(1, path.stat().st_size)
        self._raw = path.open("rb")
        self.file: IO[bytes] = unpacked(path, self._raw)
        if text:
            self._take_mark()

    def _take_mark(self) -> None:
        mark = self._peek()
        while mark.startswith(codecs.BOM_UTF8):  # a second one comes of marking a marked file
            self.file.read(3)
            mark = self._peek()
        if mark.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
            self._recode("utf-32")
        elif mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            self._recode("utf-16")
        else:
            refuse_other_kinds(self.path, mark)

    def _peek(self) -> bytes:
        return bytes(self.file.peek(512)[:512])  # type: ignore[attr-defined]  # all kinds are buffered readers

    def _recode(self, encoding: str) -> None:
        """UTF-16 comes out of spreadsheets, which are small: such a file is held whole."""
        try:
            text = self.file.read().decode(encoding)
        except UnicodeDecodeError as error:
            raise SpecError(
                f"{self.path} begins as {encoding.upper()} and is not: {error}", hint="write it as UTF-8"
            ) from None
        self.file = io.BytesIO(text.encode())

    @property
    def share(self) -> float:
        return min(1.0, self._raw.tell() / self._size)

    def close(self) -> None:
        self._raw.close()


def packing_of(start: bytes) -> str | None:
    """gzip, bzip2, xz, zstd or zip; None for bytes of none of them."""
    name = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    # A text file may well begin with BZh; a bzip2 file goes on with its level and pi.
    return None if name == "bzip2" and start[4:10] not in (b"1AY&SY", b"\x17rE8P\x90") else name


def unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """A buffered reader of what is in an opened file. Raises SpecError, and on reading one of DAMAGES."""
    start = raw.read(16)
    raw.seek(0)
    match packing_of(start):
        case None:
            return raw
        case "gzip":
            opened: Any = gzip.GzipFile(fileobj=raw)
        case "bzip2":
            opened = bz2.BZ2File(raw)
        case "xz":
            opened = lzma.LZMAFile(raw)  # noqa: SIM115 - ByteSource closes what lies beneath
        case "zstd":
            import pyarrow as pa  # noqa: PLC0415 - a worker imports this package and reads no file

            opened = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
        case _:
            return _only_member(path, raw)
    return io.BufferedReader(opened)


def _only_member(path: Path, raw: IO[bytes]) -> IO[bytes]:
    archive = zipfile.ZipFile(raw)
    names = [
        one.filename
        for one in archive.infolist()
        if not one.is_dir() and not one.filename.startswith("__MACOSX")
    ]
    if "[Content_Types].xml" in names:
        raise SpecError(f"{path} is a spreadsheet or another office file", hint="save it as CSV in UTF-8")
    if len(names) != 1:
        raise SpecError(f"{path} is an archive of {len(names)} files", hint="unpack it and name the folder")
    try:
        return archive.open(names[0])
    except (RuntimeError, NotImplementedError) as error:
        raise SpecError(f"{path} cannot be unpacked: {error}", hint="unpack it") from None


def refuse_other_kinds(path: Path, start: bytes) -> None:
    """Raises SpecError where text was promised and the unpacked bytes begin as something else."""
    packing = packing_of(start)
    if packing is not None:
        raise SpecError(
            f"{path} is {packing} inside of its packing: it is packed twice", hint="unpack it once"
        )
    for magic, (name, hint) in _OTHERS.items():
        if start.startswith(magic) or (magic[:1] == b"<" and start.lower().startswith(magic)):
            raise SpecError(f"{path} is {name}", hint=hint)
    if start[257:262] == b"ustar":
        raise SpecError(f"{path} is a tar archive", hint="unpack it and name the folder")
    order = {(True, False): "LE", (False, True): "BE"}.get((_zeros(start[1:8:2]), _zeros(start[0:8:2])))
    if order is not None and any(start[:8]):
        raise SpecError(
            f"{path} looks like UTF-16{order} without a byte order mark",
            hint=f"write it as UTF-8: iconv -f utf-16{order.lower()} -t utf-8",
        )


def _zeros(some: bytes) -> bool:
    return len(some) > 1 and not any(some)
