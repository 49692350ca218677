"""The features of a few customers, worked out by hand. Times are days after START.

The records come out of the real fold; what is held against them was counted with a pencil.
"""

import numpy as np
import pytest
import tensorflow as tf

from ebbtide.featurestore.events.attributes import encode_value
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.graph.features import FeatureLayer

START = 20_000 * DAY_MS  # 2024-10-04; tiles count from 1970, so those of 4 days begin here too
NAN = float("nan")

SPEC = parse_spec(
    {
        "name": "by_hand",
        "horizon": "14d",
        "memory": "400d",
        "kinds": [
            {"name": "visit"},
            {"name": "purchase", "aggregate": ["sum", "mean", "last"]},
            {"name": "mail", "role": "contact", "decay": False},
            {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]},
            {"name": "renewal", "role": "attribute", "attribute": "date"},
            {"name": "seats", "role": "attribute"},
        ],
        "windows": {"4d": 4, "8d": 2},
        "half_lives": ["2d"],
        "days_active": [3, 100],
        "sequence": {"length": 4, "coalesce": "1h"},
    }
)
VISIT, PURCHASE, MAIL, PLAN, RENEWAL, SEATS = range(6)


def told(
    *events: tuple[int, float, float], as_of: float, spec: Spec = SPEC
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Features by name, and the sequence's columns, of one customer with events (kind, day, value), as of a day."""
    layout, n = Layout(spec), len(events)
    kinds, days, values = zip(*events, strict=True) if events else ((), (), ())
    batch = EventBatch(
        ["c"],
        np.zeros(n, np.int32),
        np.array(kinds, np.uint8),
        np.array([START + round(day * DAY_MS) for day in days], np.int64),
        np.array(values, np.float64),
        np.zeros(n, np.uint64),
        np.arange(n, dtype=np.int64),
    )
    rows, _ = Folder(layout).fold(layout.empty(1), batch)
    record = {name: tf.constant(rows[name]) for name in layout.model_fields}
    out = FeatureLayer(layout)(record, tf.constant([START + round(as_of * DAY_MS)], tf.int64))
    row = {name: value.numpy()[0] for name, value in out.items()}
    names = [feature.name for feature in features(spec)]
    assert row["features"].dtype == np.float32
    figures = dict(zip(names, row.pop("features").tolist(), strict=True))
    return figures, {name: value.tolist() for name, value in row.items()}


def holds(figures: dict[str, float], **wanted: float) -> None:
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_rhythm_and_silence() -> None:
    """
    day    0     1     2     3     4     5     6     7
           V─────V───────────V─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─┤ as of 7
             1 d      2 d      silent for 4 d
    """
    figures, _ = told((VISIT, 0, NAN), (VISIT, 1, NAN), (VISIT, 3, NAN), as_of=7)
    mean = (np.log1p(86_400) + np.log1p(2 * 86_400)) / 2
    usual = np.expm1(mean) / 86_400
    holds(
        figures,
        silence=4,
        tenure=7,
        activity_total=3,
        gap_missing=0,
        gap_usual=usual,
        silence_ratio=4 / usual,
    )
    holds(figures, gap_spread=(np.log1p(2 * 86_400) - np.log1p(86_400)) / 2)
    assert usual == pytest.approx(2**0.5, rel=1e-3)  # the geometric mean of one and two days


def test_the_tail_of_a_window_hops_by_its_tile() -> None:
    """
    day          0   1   2   3   4   5   6   7   8
                 V   P   P           V
    4 d, hop 1                 ├───────────┤ ●     as of 6.5: tiles 3 4 5 6 hold the visit of day 5
    8 d, hop 4   ├───────────┼───────────── ●      tiles 0 and 1 hold all
    as of 8.0:               ├───────────┼── ●     tile 0 is gone, though no event came to empty it
    """
    events = ((VISIT, 0, NAN), (PURCHASE, 1, 10.0), (PURCHASE, 2, 20.0), (VISIT, 5, NAN))
    figures, _ = told(*events, as_of=6.5)
    holds(figures, visit_count_4d=1, purchase_count_4d=0, visit_count_8d=2, purchase_count_8d=2)
    holds(figures, purchase_sum_4d=0, purchase_sum_8d=30, purchase_mean_4d=0, purchase_mean_8d=15)
    holds(figures, purchase_last=20)
    figures, _ = told(*events, as_of=8.0)
    holds(figures, visit_count_4d=1, visit_count_8d=1, purchase_count_8d=0, purchase_sum_8d=0)
    figures, _ = told(*events, as_of=9.0)
    holds(figures, visit_count_4d=0)


def test_days_are_counted_across_words_of_64_bits() -> None:
    """
    day       0 ...      70   71   72   73
              V          VV         V    ┤ as of 73.5: of the last 3 days (71, 72, 73) one was active, of 100 three
    """
    events = ((VISIT, 0.2, NAN), (VISIT, 70.1, NAN), (VISIT, 70.9, NAN), (VISIT, 72.0, NAN))
    figures, _ = told(*events, as_of=73.5)
    holds(figures, active_days_3d=1, active_days_100d=3)
    figures, _ = told(*events, as_of=99.9)
    holds(figures, active_days_3d=0, active_days_100d=3)
    figures, _ = told(*events, as_of=100.0)
    holds(figures, active_days_100d=2)


def test_since_never_and_decay() -> None:
    """
    day    0     1     2     3     4        half-life 2 d
           V     P           M        ┤ as of 5: V decayed to 2^-2.5, P to 2^-2; M keeps none
    """
    figures, _ = told((VISIT, 0, NAN), (PURCHASE, 1, 5.0), (MAIL, 3, NAN), as_of=5)
    holds(
        figures, visit_since=5, purchase_since=4, mail_since=2, visit_never=0, purchase_never=0, mail_never=0
    )
    holds(figures, visit_decay_2d=2**-2.5, purchase_decay_2d=0.25)
    assert "mail_decay_2d" not in figures
    holds(figures, silence=4)  # our mail is no life of theirs


def test_attributes_and_what_is_missing() -> None:
    renewal = encode_value(SPEC.kinds[RENEWAL].readings[0], "2024-11-03")
    events = ((VISIT, 0, NAN), (PLAN, 1, 2.0), (RENEWAL, 1, renewal), (SEATS, 1, 7.0), (SEATS, 2, NAN))
    figures, _ = told(*events, as_of=10)
    holds(figures, plan_is_free=0, plan_is_plus=1, plan_missing=0, renewal_until=20, renewal_missing=0)
    holds(figures, seats=7, seats_missing=0)
    figures, _ = told((VISIT, 0, NAN), (PLAN, 1, 0.0), as_of=10)  # a plan that the spec does not list
    holds(figures, plan_is_free=0, plan_is_plus=0, plan_missing=0, renewal_missing=1, renewal_until=0)


def test_a_record_of_zero_bytes_is_all_missing_and_finite() -> None:
    figures, sequence = told(as_of=0)
    missing = {name for name in figures if name.endswith(("_missing", "_never"))}
    assert {name for name, value in figures.items() if value} == missing
    assert sequence == {"kind": [0] * 4, "count": [0.0] * 4, "value": [0.0] * 4, "gap": [0.0] * 4}


def test_the_sequence_is_in_order_after_many_rounds() -> None:
    """
    ring of 4:   V  P  V·V  P      the two visits within an hour share an entry
    then two     V  P              push the oldest two out
    """
    begun = ((VISIT, 0, NAN), (PURCHASE, 1, 9.0), (VISIT, 3, NAN), (VISIT, 3.01, NAN))
    _, sequence = told(*begun, as_of=4)
    assert sequence["kind"] == [0, 1, 2, 1]
    assert sequence["count"] == [0, 1, 1, 2]
    assert sequence["value"] == [0, 0, 9, 0]
    assert sequence["gap"] == [0, 0, 86_400, 2 * 86_400]
    _, sequence = told(*begun, (PURCHASE, 4, 3.0), (VISIT, 5, NAN), (PURCHASE, 6, 4.0), as_of=7)
    assert sequence["kind"] == [1, 2, 1, 2]
    assert sequence["count"] == [2, 1, 1, 1]
    assert sequence["value"] == [0, 3, 0, 4]


def test_times_keep_their_milliseconds() -> None:
    """A second before now is a second, although an epoch in float32 is only good to two minutes."""
    figures, _ = told((VISIT, 0, NAN), as_of=1 / 86_400)
    holds(figures, silence=1 / 86_400, tenure=1 / 86_400, visit_since=1 / 86_400)


def test_a_spec_without_any_extras() -> None:
    spec = parse_spec(
        {"name": "bare", "horizon": "1d", "memory": "9d", "kinds": [{"name": "visit"}], "windows": {"1d": 1}}
    )
    figures, sequence = told((VISIT, 0, NAN), as_of=0.5, spec=spec)
    assert list(figures) == [feature.name for feature in features(spec)]
    holds(figures, silence=0.5, visit_count_1d=1, visit_since=0.5, gap_missing=1)
    assert len(sequence["kind"]) == spec.sequence.length
