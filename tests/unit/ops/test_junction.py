"""What of a file counts, by arrival, and where a log goes on after it: decided without a server."""

import json
from pathlib import Path

import pytest

from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.spec import dump_spec, parse_spec
from ebbtide.featurestore.store.checkpoint import History
from ebbtide.ops.errors import OpsError
from ebbtide.ops.state.junction import Gap, Junction, junctions_of, part_of
from ebbtide.stream.kafka.reader import LogAt
from tests.support.seams.scoring import SPEC

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
T0 = 1_700_000_000_000


def log_of(tmp_path: Path, rows: list[tuple[int, int]]) -> EventLog:
    """Visits with these times and arrivals, in hours after T0."""
    spec = parse_spec(dump_spec(SPEC) | {"mapping": {"arrival": "seen"}})
    path = tmp_path / "log.csv"
    lines = [f"c{i},visit,{T0 + at * HOUR_MS},{T0 + seen * HOUR_MS}," for i, (at, seen) in enumerate(rows)]
    path.write_text("\n".join(["user_id,type,ts,seen,value", *lines]) + "\n", encoding="utf-8")
    return read_log(path, spec)


def test_a_file_ends_by_arrival_where_that_is_mapped(tmp_path: Path) -> None:
    """The last event came three hours late: the topic has it at its arrival."""
    part = part_of(log_of(tmp_path, [(0, 0), (1, 1), (2, 5)]), None)
    assert part.until_ms == T0 + 5 * HOUR_MS + 1
    assert part.known_ms == T0 + 2 * HOUR_MS + 1
    assert len(part.events) == 3 and part.outliers == 0


def test_until_goes_by_arrival_and_never_beyond_the_end(tmp_path: Path) -> None:
    log = log_of(tmp_path, [(0, 0), (1, 1), (1, 4), (3, 3)])
    part = part_of(log, T0 + 4 * HOUR_MS)
    assert len(part.events) == 3 and part.known_ms == T0 + 3 * HOUR_MS + 1
    assert part_of(log, T0 + 400 * DAY_MS).until_ms == T0 + 4 * HOUR_MS + 1


def test_an_until_before_the_file_is_refused(tmp_path: Path) -> None:
    """`0 events folded` was taken for an answer, and the empty state for the file's."""
    log = log_of(tmp_path, [(0, 0), (1, 1)])
    with pytest.raises(OpsError, match=r"nothing of the file arrived before .* it begins at"):
        part_of(log, T0)


def test_a_part_of_a_file_keeps_every_value_of_a_kind(tmp_path: Path) -> None:
    """Of a kind with several values all of them end where the file does."""
    visit = {"name": "visit", "values": [{"name": "pages", "from": "value"}, {"name": "minutes"}]}
    spec = parse_spec(dump_spec(SPEC) | {"kinds": [visit]})
    path = tmp_path / "log.jsonl"
    rows = [
        {
            "user_id": f"c{i}",
            "type": "visit",
            "ts": T0 + i * HOUR_MS,
            "value": i,
            "properties": {"minutes": 10 + i},
        }
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part = part_of(read_log(path, spec), T0 + 2 * HOUR_MS)
    assert part.events.values.tolist() == [[0.0, 10.0], [1.0, 11.0]]


@pytest.mark.parametrize(
    ("at", "gap"),
    [
        (LogAt(0, 9, T0 + DAY_MS, 0), None),  # nothing was ever deleted
        (LogAt(4, 9, T0 - DAY_MS, 6), None),  # the log reaches back to before the file's end
        (LogAt(4, 9, T0 - DAY_MS, 9), None),  # and ends before it
        (LogAt(4, 9, T0 + DAY_MS, 4), Gap(0, T0, T0 + DAY_MS)),
        (LogAt(4, 4, None, 4), Gap(0, T0, None)),
    ],
)
def test_a_gap_is_what_neither_has(at: LogAt, gap: Gap | None) -> None:
    junctions, gaps = junctions_of({0: at}, T0)
    assert junctions == {0: Junction(at.offset, History(T0, at.end))}
    assert gaps == ([gap] if gap else [])
