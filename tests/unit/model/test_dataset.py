"""Examples: which points are drawn, how they are weighed and split, and what a data scientist gets."""

from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import EVENT, SILENCE, Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import SNAPSHOT, replay
from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.dataset import History, Inputs, draw
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.known import known_log
from ebbtide.model.examples.labels import CANCELLED, CHURNED, STAYED, Labeller
from ebbtide.model.examples.rows_file import write_rows
from ebbtide.model.examples.sample import Sample, snapshot_dates
from ebbtide.model.examples.slices import HELD_OUT_PERCENT, held_out, plan_slices
from ebbtide.model.training.by_customers import split_of
from ebbtide.model.training.panels import PANEL_MIN, panel_of, points_in
from ebbtide.model.training.prepare import prepare
from tests.support.oracle.histories import START, columns
from tests.support.oracle.oracle import Event
from tests.support.seams.models import SPEC, TINY

H = TINY.horizon_ms


def visits(customers: int = 40, days: int = 60, seed: int = 0) -> list[tuple[str, Event]]:
    """Customers who come every other day and stop one after the other, in order of time."""
    rng = np.random.default_rng(seed)
    times = sorted(
        (START + int((day + rng.random()) * DAY_MS), f"c{customer}")
        for customer in range(customers)
        for day in range(0, int(rng.integers(2, days)), 2)
    )
    return [(customer, Event(0, time)) for time, customer in times]


LOG = columns(visits())
UNTIL = int(LOG.time.max()) + 1


def drawn(examples_max: int = 100_000, spec: Spec = TINY) -> Examples:
    return draw(History(Layout(spec), LOG, UNTIL), examples_max=examples_max)


def test_every_labelled_point_is_an_example_when_there_is_room() -> None:
    examples = drawn()
    dates = snapshot_dates(TINY, LOG, UNTIL - H)
    labeller, expected = Labeller(TINY, LOG, UNTIL), 0
    for points in replay(Layout(TINY), LOG, UNTIL, snapshots=dates):
        asked = points.scored | (points.cause == SNAPSHOT)  # nobody scores an expiry
        expected += int((labeller.known(points.as_of) & asked).sum())
    assert len(examples) == expected
    assert set(examples.cause) == {EVENT, SILENCE, SNAPSHOT}
    assert set(examples.label) == {STAYED, CHURNED}
    assert examples.as_of.max() + H < UNTIL
    assert set(examples.as_of[examples.snapshot]) <= set(dates)
    snapshots = list(
        zip(examples.customer[examples.snapshot], examples.as_of[examples.snapshot], strict=True)
    )
    assert len(set(snapshots)) == len(snapshots), "each customer once as of a date"


def test_examples_see_what_the_record_says() -> None:
    examples = drawn()
    seen = [(f.name, i) for i, f in enumerate(features(TINY)) if f.name in ("silence", "activity_total")]
    for row in range(0, len(examples), 37):
        mine = (LOG.customer == examples.customer[row]) & (LOG.time <= examples.as_of[row])
        truth = {
            "activity_total": mine.sum(),
            "silence": (examples.as_of[row] - LOG.time[mine].max()) / DAY_MS,
        }
        for name, column in seen:
            assert examples.features[row, column] == pytest.approx(truth[name], rel=1e-5)


def test_a_sample_is_bounded_and_does_not_depend_on_cuts() -> None:
    small = drawn(400)
    assert len(small) == 400
    assert small.snapshot.sum() == 200
    keys = {(c, t, k) for c, t, k in zip(small.customer, small.as_of, small.cause, strict=True)}
    everything = drawn()
    assert keys <= {
        (c, t, k) for c, t, k in zip(everything.customer, everything.as_of, everything.cause, strict=True)
    }
    layout = Layout(TINY)
    for chunk in (5, 1_000):
        sample = Sample(layout, 50, seed=3)
        for points in replay(layout, LOG, UNTIL, chunk=chunk):
            sample.offer(points, points.scored)
        found = sample.points()
        assert len(found) == 50
        assert sample.offered > 500
        if chunk == 5:
            first = found
    for f in fields(Points):
        if f.name != "event":
            assert getattr(first, f.name).tobytes() == getattr(found, f.name).tobytes()


def test_weights_even_out_customers_and_sorts() -> None:
    examples = drawn()
    weight = examples.weights()
    assert weight.mean() == pytest.approx(1.0, abs=1e-5)
    assert weight[examples.snapshot].sum() == pytest.approx(weight[~examples.snapshot].sum(), rel=1e-4)
    decisions = ~examples.snapshot
    rows = np.bincount(examples.customer[decisions])
    busy, idle = int(rows.argmax()), int(np.where(rows > 0, rows, 10**9).argmin())
    total = [float(weight[decisions & (examples.customer == c)].sum()) for c in (busy, idle)]
    expected = [sum(k**-0.5 for k in range(1, rows[c] + 1)) for c in (busy, idle)]
    assert total[0] / total[1] == pytest.approx(expected[0] / expected[1], rel=1e-4)


@pytest.mark.parametrize("spec", [SPEC, TINY, parse_spec(dump_spec(TINY) | {"score_every": "4d"})])
def test_a_panel_brings_the_points_it_is_bounded_by(spec: Spec) -> None:
    """Counted by a walk through the log: not a tenth of them, and not twice as many."""
    log = columns(visits(customers=3_000, days=90, seed=3))
    span = (int(np.quantile(log.time, 0.5)), int(np.quantile(log.time, 0.5)) + spec.horizon_ms)
    brought = np.zeros(len(log.customers), np.int64)
    for points in replay(Layout(spec), log, span[1]):
        inside = points.scored & (points.as_of >= span[0]) & (points.as_of < span[1])
        np.add.at(brought, points.customer[inside], 1)
    bound = int(brought.sum()) // 3
    panel = panel_of(spec, log, span, bound, 0)
    assert 0.75 * bound < brought[panel].sum() < 1.25 * bound
    assert panel_of(spec, log, span, 10 * int(brought.sum()), 0).all(), "with room for all, all"
    assert panel_of(spec, log, span, 0, 0).sum() == PANEL_MIN
    several = points_in(spec, log, span) > 0
    assert (brought[~several] == 0).all(), "nobody comes up of whom no point is counted"


def test_few_examples_still_ask_everybody_for_a_threshold() -> None:
    log, layout = columns(visits(customers=1_000, days=90, seed=3)), Layout(TINY)
    known = known_log(layout, log, None)
    recent = prepare(layout, known, TrainConfig(examples_max=200)).recent
    deciding: set[int] = set()
    for points in replay(layout, known.log, known.until_ms):
        inside = points.scored & (points.as_of >= recent.start_ms) & (points.as_of < known.until_ms)
        deciding |= set(points.customer[inside].tolist())
    assert set(recent.rows.customer.tolist()) == deciding
    assert len(deciding) > PANEL_MIN // 4


def test_what_follows_a_row_does_not_weigh_in_it() -> None:
    """Who stays has more rows than who leaves: a weight that knew how many follow would know the label."""
    examples = drawn()
    weight, until = examples.weights(), int(np.quantile(examples.as_of, 0.4))
    then = examples.as_of < until
    alone = examples.take(then).weights()
    assert 0 < then.sum() < len(examples)
    for sort in (examples.snapshot, ~examples.snapshot):
        ratio = weight[then & sort] / alone[sort[then]]
        assert ratio == pytest.approx(ratio[0], rel=1e-4)


@pytest.mark.parametrize("horizons", [1.8, 2.0, 3.9, 4.0, 9.0])
def test_each_slice_ends_a_horizon_before_the_next(horizons: float) -> None:
    end = START + round(horizons * H)
    slices = plan_slices(TINY, START, end + H)
    bounds = [slices.train, *([slices.calibration] if slices.calibration else []), slices.test]
    assert (slices.calibration is None) == (horizons < 4)
    assert bounds[0][0] == START
    assert bounds[-1][1] == end, "the last labelled rows are judged"
    for before, after in pairwise(bounds):
        assert after[0] - before[1] >= H
    assert all(start < stop for start, stop in bounds)


def test_a_history_too_short_says_what_it_needs() -> None:
    with pytest.raises(SpecError, match=r"needs at least 19\.2"):
        plan_slices(TINY, START, START + 15 * DAY_MS)


def test_calibration_by_customers_when_time_is_short() -> None:
    examples, held = drawn(), held_out(SPEC, LOG.customers)
    slices = plan_slices(TINY, START, START + 4 * H)
    slice_of = slices.of(examples, held)
    assert set(slice_of) == {"train", "calibration", "test", "gap"}
    assert held[examples.customer[slice_of == "calibration"]].all()
    assert not held[examples.customer[slice_of == "train"]].any()
    gap = examples.as_of[slice_of == "gap"]
    assert ((gap >= slices.train[1]) & (gap < slices.test[0]) | (gap >= slices.test[1])).all()


def test_who_is_held_out_depends_on_the_id_alone() -> None:
    names = [f"customer-{i}" for i in range(5_000)]
    held = held_out(SPEC, names)
    assert abs(held.mean() * 100 - HELD_OUT_PERCENT) < 2
    assert (held_out(SPEC, names[::-1])[::-1] == held).all()


def test_rows_of_a_first_part_are_one_persons() -> None:
    """Of composite customers; of others no column is kept, and each customer is a person."""
    learners = parse_spec(dump_spec(TINY) | {"customer": ["learner", "course"]})
    log = columns([(f"learner-{int(c[1:]) % 7}/course-{c}", event) for c, event in visits()])
    examples = draw(History(Layout(learners), log, UNTIL), examples_max=1_000)
    whose = [log.customers[i].split("/")[0] for i in examples.customer]
    assert len(set(whose)) == 7
    assert (
        len(set(zip(whose, examples.people.tolist(), strict=True))) == len(set(examples.people.tolist())) == 7
    )
    few = examples.take(examples.snapshot)
    assert few.people.tolist() == examples.people[examples.snapshot].tolist()
    plain = drawn()
    assert plain.person is None
    assert plain.people is plain.customer


def test_a_split_keeps_a_first_part_on_one_side() -> None:
    """A learner's courses are held out together; an id that only looks like a composite one is a whole."""
    names = [f"learner-{i}/course-{j}" for i in range(2_000) for j in range(3)]
    learners = parse_spec(dump_spec(SPEC) | {"customer": ["learner", "course"]})
    together = held_out(learners, names).reshape(-1, 3)
    assert (together == together[:, :1]).all()
    assert abs(together.mean() * 100 - HELD_OUT_PERCENT) < 3
    apart = held_out(SPEC, names).reshape(-1, 3)
    assert (apart != apart[:, :1]).any()
    for split in split_of(learners, names, 4):
        assert (split.reshape(-1, 3) == split.reshape(-1, 3)[:, :1]).all()
    assert np.bincount(split_of(learners, names, 4)[0]).min() > 3 * 400


def test_snapshot_dates_are_whole_days_for_long_horizons() -> None:
    week = snapshot_dates(SPEC, LOG, UNTIL)  # 14 d / 8, rounded down
    assert set(np.diff(week)) == {DAY_MS}
    assert all(date % DAY_MS == 0 for date in week)
    quick = TINY.model_copy(update={"horizon_ms": 8 * 60_000})
    assert set(np.diff(snapshot_dates(quick, LOG, START + DAY_MS))) == {60_000}
    assert snapshot_dates(TINY, LOG, START) == ()


def test_inputs_do_not_depend_on_how_many_rows_come_together() -> None:
    layout = Layout(TINY)
    points = next(iter(replay(layout, LOG, UNTIL)))
    inputs = Inputs(layout)
    whole, alone = inputs(points.rows, points.as_of), inputs(points.rows[3:4], points.as_of[3:4])
    for name, column in whole.items():
        assert len(column) == len(points)
        assert column[3:4].tobytes() == alone[name].tobytes()
    assert len(inputs(points.rows[:0], points.as_of[:0])["features"]) == 0


def test_rows_for_other_tools(tmp_path: Path) -> None:
    examples = drawn(60)
    examples.label[:3] = CANCELLED
    write_rows(tmp_path / "rows.parquet", examples, LOG.customers, np.full(60, "train"), TINY)
    table = pq.read_table(tmp_path / "rows.parquet")
    fixed = ["customer", "as_of", "cause", "label", "weight", "slice"]
    assert table.column_names == [*fixed, *(f.name for f in features(TINY))]
    assert table["customer"].to_pylist() == [LOG.customers[c] for c in examples.customer]
    assert set(table["label"].to_pylist()) == {"left", "stayed", "churned"}
    assert np.array_equal(table["silence"].to_numpy(), examples.silence_days)
