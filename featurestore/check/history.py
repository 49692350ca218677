"""A log of events for whoever learns from it or stores it: read, and refused where its times are surely wrong.

`read_log` itself reads whatever fits the spec: `ebbtide spec check` and notebooks must be able to look at such a log.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from ebbtide.featurestore.check.times import wrong_unit
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.parts.engine import Engine
from ebbtide.featurestore.spec import Spec


def read_history(
    path: Path | str | Sequence[Path | str],
    spec: Spec,
    *,
    progress: Callable[[float], None] | None = None,
    engine: Engine | None = None,
) -> EventLog:
    """`read_log`. Raises SpecError, also where times are of another unit than the spec says: nothing further on would
    show it but figures that are wrong."""
    log = read_log(path, spec, progress=progress, engine=engine)
    if (wrong := wrong_unit(log, spec)) is not None:
        raise SpecError(wrong.text.rstrip("."), hint="ebbtide spec check says more about the file")
    return log
