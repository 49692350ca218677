"""A log by parts: files read in groups and records folded by parts are those of one process, errors among them."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.parts.engine import JobFailed, Outcome, attempt
from ebbtide.featurestore.parts.processes import HERE, Processes
from ebbtide.featurestore.parts.spark import Spark, _packed, _releases, _serve, _unpacked
from ebbtide.featurestore.parts.states import states_by
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.times.durations import DAY_MS
from tests.support.oracle.histories import columns, random_history, random_spec
from tests.support.seams.engines import Pickled
from tests.support.seams.models import TINY

HEAD = "user_id,type,ts,value"


def write_files(folder: Path, files: int = 7) -> Path:
    """Files of other lengths; events of all times and customers in each, some rows that do not fit in the last ones."""
    rng = np.random.default_rng(4)
    print("seed 4")
    for number in range(files):
        rows = [
            f"c{rng.integers(30)},visit,{20_000 * DAY_MS + int(rng.integers(9)) * DAY_MS // 3},"
            for _ in range(20 * (number % 3) + 1)
        ]
        bad = ["c1,visit,never,", "c1,dance,5,"][: max(0, number - 4)]
        (folder / f"{number}.csv").write_text("\n".join([HEAD, *rows, *bad]) + "\n")
    return folder


@pytest.mark.parametrize("groups", [2, 3, 50])
def test_files_in_groups_are_one_log(tmp_path: Path, groups: int) -> None:
    folder, engine = write_files(tmp_path), Pickled(groups)
    one, other = (read_log(folder, TINY, tolerant=True, engine=each) for each in (None, engine))
    assert 1 < engine.sizes[0] <= min(groups, 7)
    assert one.problems.total > 0 and one.problems == other.problems
    assert (one.rows, one.ignored, one.ids) == (other.rows, other.ignored, other.ids)
    assert pickle.dumps(one.events) == pickle.dumps(other.events)
    refused = []
    for each in (None, engine):
        with pytest.raises(SpecError) as caught:
            read_log(folder, TINY, engine=each)
        refused.append((caught.value.args, caught.value.hint))
    assert refused[0] == refused[1]


def test_an_unreadable_file_of_a_group_is_named(tmp_path: Path) -> None:
    folder = write_files(tmp_path)
    (folder / "3.csv").write_text("nothing,that,fits\n1,2,3\n")
    with pytest.raises(SpecError, match=r"3\.csv"):
        read_log(folder, TINY, engine=Pickled(3))


@pytest.mark.parametrize("seed", range(4))
def test_records_by_parts_are_those_of_the_whole(seed: int) -> None:
    spec = random_spec(seed) if seed else TINY
    log = columns(random_history(spec, seed, 1_500, customers=23))
    layout, latest = Layout(spec), int(log.time.max())
    assert (states_by(HERE, layout, log, latest + 1)["event_time"] != 0).sum() > 0
    for before_ms in (latest + 1, latest, int(np.median(log.time))):
        whole = states_by(HERE, layout, log, before_ms)
        assert states_by(Pickled(5), layout, log, before_ms).tobytes() == whole.tobytes()


def test_an_error_that_nobody_foresaw_is_one_line() -> None:
    with pytest.raises(JobFailed, match=r"ZeroDivisionError: .* \(take fewer\)"):
        attempt(lambda n: 1 // n, 0).settled("take fewer")


@pytest.mark.parametrize(
    ("master", "events", "count"),
    [("local[4]", 10, 4), ("local", 10, 2), ("local[1,3]", 10, 2), ("spark://host:7077", 5_000_001, 11)],
)
def test_spark_has_a_part_a_core_and_half_million(master: str, events: int, count: int) -> None:
    assert Spark(master).parts(events) == count
    assert Spark(master, 3).parts(events) == 3
    assert Processes(3).parts(10) == 1


def test_an_executor_of_another_release_does_nothing() -> None:
    asked = {**_releases(), "numba": "0.1"}
    outcome = _unpacked(_serve(asked, pickle.dumps(len), _packed("four")))
    with pytest.raises(JobFailed, match=r"an executor has numba .* instead of 0\.1 \(give executors our own"):
        outcome.settled("")
    assert _unpacked(_serve(_releases(), pickle.dumps(len), _packed("four"))) == Outcome(True, 4)


def test_without_pyspark_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pyspark'] = None\n"
        "from ebbtide.featurestore.parts.spark import Spark\n"
        "Spark('local[2]').map(len, ['a', 'b'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert "Spark needs pyspark, which is not installed (pip install 'ebbtide[spark]')" in last
