"""Events that lie elsewhere, copied here: `s3://bucket/history`, and by the same layer `gs://` and `hdfs://`.

    s3://bucket/history/day=1/a.parquet ──▶ HOME/<hash of the URL>/day=1/a.parquet      a mirror

What has gone is removed. A file is copied again when its size or its time of change is another one, several at a time;
a copy appears whole or not at all. Reading is then of local files: the same code, the same words of refusal. Who we are
is for the environment to say (AWS_ACCESS_KEY_ID, a role): a URL holds no credentials, since it ends up in logs.
`?endpoint_override=host:port&scheme=http&region=…` name another server that speaks S3. S3 is tested; GCS and HDFS are
Arrow's, untested here.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ebbtide.featurestore.errors import SpecError

SCHEMES = ("s3://", "gs://", "gcs://", "hdfs://")
COPIES = 8
"""At a time: of small files the round trip is the price, and one waits while another is copied."""
CHUNK_BYTES = 4 << 20


class Remote(NamedTuple):
    """path: below the URL, '' for the URL's own file. changed_ns: 0 where the server does not say."""

    path: str
    size: int
    changed_ns: int


def is_remote(name: str) -> bool:
    """Whether events of this name lie elsewhere."""
    return name.startswith(SCHEMES)


def listed(url: str) -> list[Remote]:
    """What lies under a URL, in order of path. Raises SpecError: nothing there, or the server refuses."""
    filesystem, root = _opened(url)
    return _listed(url, filesystem, root)


def mirrored(url: str, home: Path) -> Path:
    """Copy what lies under a URL, as far as it is not here yet. Returns its local place. Raises SpecError, OSError."""
    filesystem, root = _opened(url)
    place = home / blake2b(url.encode(), digest_size=8).hexdigest()
    files = [(file, _local(place, root, file)) for file in _listed(url, filesystem, root)]
    place.mkdir(parents=True, exist_ok=True)
    wanted = {local for _, local in files}
    for old in [path for path in place.rglob("*") if path.is_file() and path not in wanted]:
        old.unlink()
    with ThreadPoolExecutor(COPIES) as pool:
        list(pool.map(lambda each: _copy(url, filesystem, root, *each), files))
    return place


def _local(place: Path, root: str, file: Remote) -> Path:
    return place / (file.path or PurePosixPath(root).name)


def _opened(url: str) -> tuple[Any, str]:
    from pyarrow import fs  # noqa: PLC0415 - a worker imports this package and reads no file

    if "@" in url.split("://", 1)[1].split("/", 1)[0]:
        raise SpecError(
            f"{_shown(url)} holds credentials", hint="set them in the environment, e.g. AWS_ACCESS_KEY_ID"
        )
    try:
        filesystem, root = fs.FileSystem.from_uri(url)
    except (OSError, ValueError, NotImplementedError) as error:
        raise SpecError(
            f"{_shown(url)} cannot be reached: {_first(error)}", hint="is the URL right?"
        ) from None
    return filesystem, root


def _listed(url: str, filesystem: Any, root: str) -> list[Remote]:
    from pyarrow import fs  # noqa: PLC0415 - see `_opened`

    try:
        info = filesystem.get_file_info(root)
        found = (
            [info]
            if info.type == fs.FileType.File
            else filesystem.get_file_info(fs.FileSelector(root, recursive=True))
        )
    except OSError as error:
        raise _refused(url, error) from None
    files = [
        Remote(
            "" if one is info else one.path[len(root) :].lstrip("/"), int(one.size), int(one.mtime_ns or 0)
        )
        for one in found
        if one.type == fs.FileType.File
    ]
    if not files:
        raise SpecError(f"no file lies under {_shown(url)}", hint="is the prefix right?")
    return sorted(files)


def _copy(url: str, filesystem: Any, root: str, file: Remote, local: Path) -> None:
    state = local.stat() if local.exists() else None
    if state is not None and state.st_size == file.size and state.st_mtime_ns == file.changed_ns:
        return
    local.parent.mkdir(parents=True, exist_ok=True)
    beside = local.with_name(f".{local.name}.part")
    path = f"{root.rstrip('/')}/{file.path}" if file.path else root
    try:
        source = filesystem.open_input_stream(path, compression=None)
    except OSError as error:
        raise _refused(
            f"{url.split('?', maxsplit=1)[0].rstrip('/')}/{file.path}" if file.path else url, error
        ) from None
    with source, beside.open("wb") as out:
        while chunk := source.read(CHUNK_BYTES):
            out.write(chunk)
        if out.tell() != file.size:
            raise SpecError(
                f"{_shown(url)}: {file.path} came with {out.tell():,} bytes of {file.size:,}",
                hint="run again",
            )
    os.utime(beside, ns=(file.changed_ns, file.changed_ns))
    beside.replace(local)


def _refused(url: str, error: OSError) -> SpecError:
    return SpecError(
        f"cannot read {_shown(url)}: {_first(error)}",
        hint="may we read there? Credentials come from the environment, e.g. AWS_ACCESS_KEY_ID",
    )


def _shown(url: str) -> str:
    return re.sub(r"://[^/@]*@", "://***@", url.split("?", maxsplit=1)[0])


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]
