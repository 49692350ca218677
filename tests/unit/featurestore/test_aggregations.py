"""What is kept of values: the table's own promises, and several values of an event from bytes to columns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.aggregations import AGGREGATIONS, BY_NAME, DISTINCT, STORES
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.files.as_stream import contract_spec, records_of
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.record.features import PARTS, features
from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec
from tests.support.seams.streams import LogRecord

ROOT = Path(__file__).resolve().parents[3]
PURCHASE = {
    "name": "purchase",
    "values": [
        {"name": "amount", "from": "value", "aggregate": ["sum", "max"]},
        {"name": "items", "from": "properties.n_items", "aggregate": ["mean"]},
        {"name": "store", "aggregate": ["distinct"]},
        {
            "name": "shop",
            "from": "properties.store",
            "aggregate": ["share"],
            "categories": ["north", "{south}"],
        },
    ],
}
PLAIN: dict[str, Any] = {
    "name": "plain", "horizon": "14d", "memory": "100d", "windows": {"7d": 7, "28d": 7},
    "kinds": [{"name": "visit"}, PURCHASE, {"name": "tier", "role": "attribute", "attribute": "number"}],
}  # fmt: skip
HEAD = "user_id,type,ts,value,n_items,store"
ROWS = (
    "a,purchase,2026-01-01,9.5,2,north", "a,visit,2026-01-02,,,", "b,purchase,2026-01-03,,3,{south}",
    "a,purchase,2026-01-04,1.25,,elsewhere", "b,tier,2026-01-05,7,,", "b,purchase,2026-01-06,4,1,",
)  # fmt: skip


def spec_of(**changes: Any) -> Spec:
    return parse_spec({**PLAIN, **changes})


def written(folder: Path, rows: tuple[str, ...] = ROWS, head: str = HEAD) -> Path:
    path = folder / "events.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_every_aggregation_has_a_part_and_every_store_a_field() -> None:
    assert [part for part in PARTS if part in BY_NAME] == list(BY_NAME)
    assert {aggregation.store.field for aggregation in AGGREGATIONS} == {store.field for store in STORES}


@pytest.mark.parametrize("name", ["record/loop", "record/compiled", "record/arguments", "record/features"])
def test_no_store_is_named_outside_of_the_table(name: str) -> None:
    """A new aggregation is an entry there, and no line of these."""
    text = (ROOT / "featurestore" / f"{name}.py").read_text()
    graph = [(ROOT / "model" / "graph" / f"{file}.py").read_text() for file in ("features", "windows")]
    assert not [store.field for store in STORES if any(store.field in each for each in (text, *graph))]


def unpacked(cells: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[n, rows, tiles] -> [n, rows, tiles, 64]: each word's bits."""
    return np.unpackbits(cells[..., None].view(np.uint8), axis=-1, bitorder="little")


@pytest.mark.parametrize(("many", "error_max"), [(1, 0.01), (8, 0.10), (32, 0.11), (64, 0.11), (128, 0.15)])
def test_distinct_is_within_its_published_error(many: int, error_max: float) -> None:
    """Standard error and bias over 2,000 customers who saw `many` texts, three times each, in two tiles."""
    rng, n = np.random.default_rng(many), 2_000
    cells = np.zeros((n, 1, 2), np.int64)
    for i in range(n):
        for token in rng.integers(0, 2**53, many).repeat(3):
            DISTINCT.add(cells, i, 0, int(rng.integers(2)), float(token))
    bits = DISTINCT.merge(np, unpacked(cells)).astype(np.float32)
    figure = BY_NAME["distinct"].figure(np, bits, bits)[:, 0] / many
    assert figure.std() < error_max
    assert abs(figure.mean() - 1) < 0.03


def test_distinct_is_bounded() -> None:
    full = np.full((1, 1, 3), -1, np.int64)
    bits = DISTINCT.merge(np, unpacked(full)).astype(np.float32)
    assert BY_NAME["distinct"].figure(np, bits, bits) == pytest.approx(310.5, abs=1)


def test_several_values_are_read_alike_from_file_and_stream(tmp_path: Path) -> None:
    """A file's columns, the stream's of the same events, and the stream's again of what the file has kept of them."""
    spec = spec_of()
    log = read_log(written(tmp_path), spec)
    values = log.events.values
    assert values.shape == (6, 4)
    np.testing.assert_array_equal(values[:, 0], [9.5, np.nan, np.nan, 1.25, 7, 4])
    np.testing.assert_array_equal(values[:, 1], [2, np.nan, 3, np.nan, np.nan, 1])
    assert np.isnan(values[[1, 4, 5], 2]).all()
    assert len(set(values[[0, 2, 3], 2].tolist())) == 3
    np.testing.assert_array_equal(values[:, 3], [1, np.nan, 2, 0, np.nan, np.nan])
    records = [LogRecord(i, ts, key, value) for i, (key, value, ts) in enumerate(records_of(log, spec))]
    again = Parser(contract_spec(spec)).parse(records)
    assert not again.rejected
    np.testing.assert_array_equal(again.events.values, values)
    assert read_log(tmp_path / "events.csv", spec).events.values.tobytes() == values.tobytes()
    assert type(log).from_arrow(log.to_arrow()).events.values.tobytes() == values.tobytes()


def test_typed_files_say_the_same_as_text(tmp_path: Path) -> None:
    spec = spec_of()
    text = read_log(written(tmp_path), spec).events
    rows = [dict(zip(HEAD.split(","), row.split(","), strict=True)) for row in ROWS]
    numbers = [
        {name: (float(v) if name in ("value", "n_items") else v) if v else None for name, v in row.items()}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(numbers), tmp_path / "events.parquet")
    nested = [{**row, "properties": {"n_items": row["n_items"], "store": row["store"]}} for row in numbers]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nested))
    for name in ("events.parquet", "events.jsonl"):
        assert read_log(tmp_path / name, spec).events.values.tobytes() == text.values.tobytes(), name


def test_a_further_value_that_is_none_refuses_the_event(tmp_path: Path) -> None:
    path = written(tmp_path, (*ROWS, "a,purchase,2026-01-07,1,many,north"))
    with pytest.raises(SpecError, match=r"line 8: purchase: properties\.n_items: expected a number"):
        read_log(path, spec_of())
    event = {"user_id": "a", "type": "purchase", "ts": 1, "value": 1, "properties": {"store": True}}
    parsed = Parser(spec_of()).parse([LogRecord(0, 1, b"a", json.dumps(event).encode())])
    assert [bad.reason for bad in parsed.rejected] == ["bad_attribute"]


def test_features_are_named_by_kind_value_and_category() -> None:
    names = {feature.name: feature for feature in features(spec_of(trends=[["7d", "28d"]]))}
    assert {
        "purchase_amount_sum_7d", "purchase_amount_max_28d", "purchase_items_mean_7d", "purchase_store_distinct_28d",
        "purchase_shop_north_share_7d", "visit_trend_7d_28d",
    } <= names.keys()  # fmt: skip
    said = names["purchase_shop_{south}_share_7d"].describe(0.25)
    assert said == "share of {south} among purchases in the last 7d: 25%"
    assert (
        names["visit_trend_7d_28d"].describe(0.5)
        == "visits in the last 7d at 0.50 times the pace of the last 28d"
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"values": [{"name": "a", "aggregate": ["sum", "distinct"]}]}, "read it in 2 ways"),
    ({"values": [{"name": "a", "aggregate": ["share"]}]}, "categories are listed"),
    ({"values": [{"name": "a", "aggregate": ["median"]}]}, "'median' is no aggregation"),
    ({"values": [{"name": "a"}, {"name": "a", "from": "value"}]}, "listed twice"),
    ({"values": [{"name": "a"}], "aggregate": ["sum"]}, "write one or the other"),
    ({"values": [{"name": "a"}, {"name": "b", "from": "properties.a", "aggregate": ["distinct"]}]}, "not as both"),
    ({"values": [{"name": "a", "from": "elsewhere"}]}, "not 'elsewhere'"),
    ({"features": False, "aggregate": ["sum"]}, "features: false keeps nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "said"), BAD, ids=[said for _, said in BAD])
def test_what_cannot_be_kept_is_refused_in_words(kind: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        spec_of(kinds=[{"name": "visit"}, {"name": "buy", **kind}])


def test_a_spec_with_everything_survives_its_dump() -> None:
    spec = spec_of(
        trends=[["7d", "28d"]], week={"zone": "Europe/Berlin", "buckets": 7}, score_after_first=["5d"],
        targets=[{"name": "sale", "kinds": ["purchase"], "where": {"value": "shop", "is": "north"}}],
        mapping={"ts_unit": "1d", "ts_origin": "2016-01-01"},
    )  # fmt: skip
    assert parse_spec(dump_spec(spec)) == spec
    assert parse_spec(json.loads(json.dumps(dump_spec(spec)))) == spec


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trends": [["28d", "7d"]]}, "not a window and a longer one"),
        ({"trends": [["7d", "14d"]]}, "not a window and a longer one"),
        ({"score_after_first": ["101d"]}, "must lie within memory"),
        ({"week": {"zone": "Europe/Nowhere"}}, "is no time zone"),
        ({"week": {"buckets": 5}}, "do not divide"),
        ({"targets": [{"name": "x", "kinds": ["sale"]}]}, "no kind sale"),
        ({"targets": [{"name": "x", "kinds": ["purchase"], "where": {"above": 1}}]}, "4 values"),
        ({"targets": [{"name": "x", "kinds": ["visit"], "where": {"above": 1}}]}, "0 values"),
        ({"targets": [{"name": "x", "kinds": ["visit"], "where": {}}]}, "give above, below"),
        ({"targets": [{"name": n, "kinds": ["visit"]} for n in "vwxyz"]}, "at most 4"),
        ({"targets": [{"name": n, "kinds": ["visit"]} for n in "xx"]}, "target x is named twice"),
        ({"mapping": {"ts_unit": "1d", "ts_format": "s"}}, "leave one out"),
        ({"mapping": {"ts_origin": "2016-01-01"}}, "needs ts_unit"),
        ({"mapping": {"ts_unit": "1d", "ts_origin": "then"}}, "is no date"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        spec_of(**changes)


@pytest.mark.parametrize("name", ["events.csv", "events.parquet", "events.jsonl"])
def test_days_since_a_date_are_times(tmp_path: Path, name: str) -> None:
    """Whole numbers, as text and typed, and fractions where the unit allows none; `event_id` tells them apart."""
    spec = spec_of(kinds=[{"name": "visit"}], mapping={"ts_unit": "1d", "ts_origin": "2016-01-01"})
    days = [0, 1, 366, 3_650]
    table = {"user_id": ["a"] * 4, "type": ["visit"] * 4, "ts": days}
    path = tmp_path / name
    if name.endswith("csv"):
        path.write_text("user_id,type,ts\n" + "".join(f"a,visit,{day}\n" for day in days))
    elif name.endswith("parquet"):
        pq.write_table(pa.table(table), path)
    else:
        path.write_text(
            "".join(json.dumps({"user_id": "a", "type": "visit", "ts": day}) + "\n" for day in days)
        )
    times = read_log(path, spec).events.time
    assert times.tolist() == [1_451_606_400_000 + day * 86_400_000 for day in days]
    records = [
        LogRecord(i, int(ms), b"a", json.dumps({"user_id": "a", "type": "visit", "ts": day}).encode())
        for i, (day, ms) in enumerate(zip(days, times, strict=True))
    ]
    assert Parser(spec).parse(records).events.time.tolist() == times.tolist()


def test_half_a_day_is_a_time_and_text_is_none(tmp_path: Path) -> None:
    spec = spec_of(kinds=[{"name": "visit"}], mapping={"ts_unit": "1d", "ts_origin": "2016-01-01"})
    path = written(tmp_path, ("a,visit,1.5",), "user_id,type,ts")
    assert read_log(path, spec).events.time.tolist() == [1_451_606_400_000 + 129_600_000]
    path = written(tmp_path, ("a,visit,2016-01-02",), "user_id,type,ts")
    with pytest.raises(SpecError, match="expected a number of 1d since 2016-01-01"):
        read_log(path, spec)
