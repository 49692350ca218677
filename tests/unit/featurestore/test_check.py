"""`ebbtide spec check`: each trap that event logs have set before is found, and a clean log is clean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.check.events import check
from ebbtide.featurestore.check.finding import Finding, count, days, percent
from ebbtide.featurestore.spec import Spec, load_spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS

T0 = 1_704_067_200_000  # 2024-01-01
ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"
KINDS: list[dict[str, Any]] = [
    {"name": "visit"},
    {"name": "purchase", "aggregate": ["sum"]},
    {"name": "newsletter", "role": "contact"},
]
Row = tuple[str, str, int, str, str]
"""user_id, type, ts, value, event_id"""


def spec_of(kinds: list[dict[str, Any]] | None = None, **more: Any) -> Spec:
    base = {"name": "t", "horizon": "14d", "memory": "180d", "windows": {"7d": 7, "30d": 6}}
    return parse_spec({**base, "eligibility": {"max_silence": "30d"}, "kinds": kinds or KINDS, **more})


def history(seed: int = 1, customers: int = 200) -> list[Row]:
    """Half a year of customers who come every few days, some of whom stop; newsletters on Mondays."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for c in range(customers):
        at, end = T0 + int(rng.integers(30 * DAY_MS)), T0 + int(rng.integers(60, 240)) * DAY_MS
        while at < min(end, T0 + 180 * DAY_MS):
            kind = "purchase" if rng.random() < 0.3 else "visit"
            value = f"{rng.uniform(5, 50):.2f}" if kind == "purchase" else ""
            rows.append((f"c{c}", kind, at, value, f"{c}-{at}"))
            at += int(rng.exponential(3 * DAY_MS)) + HOUR_MS
    for day in range(0, 180, 7):
        at = T0 + day * DAY_MS + 9 * HOUR_MS
        rows += [(f"c{c}", "newsletter", at, "", f"n{c}-{day}") for c in range(customers)]
    return sorted(rows, key=lambda row: row[2])


HEADER = "user_id,type,ts,value,event_id"


def found(
    folder: Path, rows: Sequence[Sequence[object]], spec: Spec | None = None, header: str = HEADER
) -> list[Finding]:
    path = folder / "events.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return check(path, spec or spec_of())


def said(findings: list[Finding], code: str) -> str:
    """The one finding of a code, with its severity."""
    (finding,) = [f for f in findings if f.code == code]
    return f"{finding.severity}: {finding.text}"


def test_a_clean_log_has_notes_only(tmp_path: Path) -> None:
    findings = found(tmp_path, history())
    assert {finding.severity for finding in findings} == {"note"}
    assert {finding.code for finding in findings} == {
        "size",
        "labels_until",
        "rhythm",
        "base_rate",
        "record_bytes",
    }
    assert "of 200 customers, 2024-01-01 to 2024-06-28" in said(findings, "size")
    assert "until 2024-06-14" in said(findings, "labels_until")


def test_the_gravest_comes_first(tmp_path: Path) -> None:
    rows = [*history(), ("c1", "visits", T0, "", "x")]
    severities = [finding.severity for finding in found(tmp_path, rows, spec_of([*KINDS, {"name": "never"}]))]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert set(severities) == {"error", "warning", "note"}


def test_unknown_types_are_counted_and_the_near_miss_is_guessed(tmp_path: Path) -> None:
    rows = [*history(), *[("c1", " Purchases", T0, "", "x")] * 3]
    assert said(found(tmp_path, rows), "unknown_type") == (
        "error: 3 events of type ' Purchases', which no kind covers: they would be dead letters (or unknown: ignore). "
        "Is it 'purchase'?"
    )
    assert said(found(tmp_path, rows, spec_of(unknown="ignore")), "unknown_type").startswith(
        "warning: 3 events"
    )


def test_a_column_of_ids_as_the_type_is_not_listed_whole(tmp_path: Path) -> None:
    rows = [*history(), *[("c1", f"id-{i}", T0, "", "x") for i in range(2_000)]]
    findings = [f for f in found(tmp_path, rows) if f.code == "unknown_type"]
    assert len(findings) == 11
    assert "990 more event types" in findings[-1].text


def test_a_kind_that_never_occurs(tmp_path: Path) -> None:
    text = said(
        found(tmp_path, history(), spec_of([*KINDS, {"name": "refund", "types": ["return"]}])), "kind_never"
    )
    assert text.startswith("warning: Kind refund never occurs (types 'return')")


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("campaign_mailed", "contact"), ("push_sent", "contact"), ("email_opened", ""), ("unsubscribed", "terminal"),
        ("account_closed", "terminal"), ("cancel_subscription", "terminal"), ("cart_item_deleted", ""),
    ],
)  # fmt: skip
def test_a_role_that_sounds_wrong(tmp_path: Path, name: str, role: str) -> None:
    rows = [*history(), ("c1", name, T0, "", "x")]
    findings = [f for f in found(tmp_path, rows, spec_of([*KINDS, {"name": name}])) if f.code == "role"]
    assert [(f.severity, f.text.rpartition("role: ")[2]) for f in findings] == (
        [("warning", f"{role}?")] if role else []
    )


def test_a_value_that_no_event_has_and_one_that_is_often_missing(tmp_path: Path) -> None:
    rows = history()
    never = [(user, kind, ts, "", event_id) for user, kind, ts, _, event_id in rows]
    assert (
        said(found(tmp_path, never), "value_never")
        == "error: Kind purchase reads value, which none of its events has."
    )
    often = [(u, k, ts, v if i % 3 else "", e) for i, (u, k, ts, v, e) in enumerate(rows)]
    assert said(found(tmp_path, often), "value_missing").startswith(
        "warning: Kind purchase reads value, which 3"
    )
    same = [(u, k, ts, "5" if v else "", e) for u, k, ts, v, e in rows]
    assert "always 5" in said(found(tmp_path, same), "value_constant")


def test_a_category_that_is_not_listed(tmp_path: Path) -> None:
    plan = {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]}
    rows = [*history(), *[("c1", "plan", T0, "free", "x"), ("c2", "plan", T0, "gold", "y")]]
    assert said(found(tmp_path, rows, spec_of([*KINDS, plan])), "category_unlisted").startswith(
        "warning: 50 % of the values"
    )


def test_seconds_read_as_milliseconds(tmp_path: Path) -> None:
    rows = [(u, k, ts // 1000, v, e) for u, k, ts, v, e in history()]
    findings = found(tmp_path, rows)
    assert said(findings, "unit").startswith("error: All events lie in 1970")
    assert not [f for f in findings if f.code in ("span", "rhythm", "base_rate")]
    assert "unit" not in {f.code for f in found(tmp_path, rows, spec_of(mapping={"ts_format": "s"}))}


def test_a_coupon_stamped_at_midnight_gives_the_answer_away(tmp_path: Path) -> None:
    """It lies before the purchase it belongs to; a mailing at midnight does not."""
    rows = history()
    rows += [(u, "coupon", ts // DAY_MS * DAY_MS, "", f"k{e}") for u, k, ts, _, e in rows if k == "purchase"]
    rows += [
        (f"c{c}", "letter", T0 + d * DAY_MS, "", f"l{c}-{d}") for c in range(200) for d in range(0, 180, 30)
    ]
    kinds = [*KINDS, {"name": "letter", "role": "contact"}, {"name": "coupon"}]
    findings = [f for f in found(tmp_path, rows, spec_of(kinds)) if f.code == "midnight"]
    assert [(f.severity, f.text.split()[1]) for f in findings] == [("warning", "coupon"), ("note", "letter")]
    assert "in 100 % of the cases" in findings[0].text
    assert "stamp: day_end" in findings[0].text
    kinds[-1] = {"name": "coupon", "stamp": "day_end"}
    assert [f.text.split()[1] for f in found(tmp_path, rows, spec_of(kinds)) if f.code == "midnight"] == [
        "letter"
    ]


def test_a_log_of_days_and_a_spec_of_hours(tmp_path: Path) -> None:
    rows = [(u, k, ts // DAY_MS * DAY_MS, v, e) for u, k, ts, v, e in history()]
    findings = found(tmp_path, rows, spec_of(windows={"24h": 4, "30d": 6}))
    assert "knows days, not hours" in said(findings, "day_resolution")
    assert said(findings, "window_short").startswith("warning: The tiles of window 1d")
    assert said(findings, "silence_short").startswith("warning: silence.first, 6h")


def test_a_file_out_of_order_and_one_with_arrivals(tmp_path: Path) -> None:
    rows = history()
    rows[10], rows[500] = rows[500], rows[10]
    assert "2 steps back" in said(found(tmp_path, rows), "order")
    late = [(*row, str(row[2] + 2 * HOUR_MS)) for row in rows]
    path = tmp_path / "late.csv"
    path.write_text(
        "\n".join(["user_id,type,ts,value,event_id,got", *(",".join(map(str, row)) for row in late)])
    )
    findings = check(path, spec_of(mapping={"arrival": "got"}))
    assert "2 hours in the median" in said(findings, "lateness")
    assert "order" not in {f.code for f in findings}


def test_a_log_too_short_for_its_horizon(tmp_path: Path) -> None:
    week = [row for row in history() if row[2] < T0 + 7 * DAY_MS]
    assert said(found(tmp_path, week), "span").startswith("error: The log spans 7 days, the horizon is 14d")
    month = [row for row in history() if row[2] < T0 + 40 * DAY_MS]
    findings = found(tmp_path, month, spec_of(windows={"90d": 6}))
    assert said(findings, "span").startswith("warning: The log spans 40 days, less than 4 horizons")
    assert said(findings, "window_long").startswith("warning: Window 90d")


def test_a_horizon_that_customers_outlive(tmp_path: Path) -> None:
    spec = spec_of(horizon="3d", silence={"first": "6h"}, eligibility={})
    findings = found(tmp_path, history(), spec)
    assert said(findings, "horizon_short").startswith("warning: Who comes back does so after")
    assert "max_silence: " in said(findings, "max_silence")


def test_a_label_that_is_always_the_same(tmp_path: Path) -> None:
    rows = [row for row in history() if row[2] < T0 + 120 * DAY_MS]
    rows += [("c1", "newsletter", T0 + day * DAY_MS, "", f"z{day}") for day in range(120, 151)]
    assert said(found(tmp_path, rows, spec_of(eligibility={})), "base_rate").startswith(
        "warning: Of 200 customers"
    )


@pytest.mark.parametrize("far", [33, 730])
def test_one_event_ahead_of_all_others_is_named(tmp_path: Path, far: int) -> None:
    """And what is known ends where it ended without it (one event moved the base rate from 9 to 66 %)."""
    rows = history()
    clean = found(tmp_path, rows)
    at = rows[-1][2] + far * DAY_MS
    findings = found(tmp_path, [*rows, ("c7", "visit", at, "", "z")])
    text = said(findings, "outlier")
    assert text.startswith(f"warning: 1 event (row {len(rows) + 1:,}: customer 'c7', 202")
    assert f"{far} days or more after all others" in text
    for code in ("labels_until", "base_rate"):
        assert said(findings, code) == said(clean, code)


def test_rows_that_do_not_fit_come_with_a_remedy(tmp_path: Path) -> None:
    findings = found(tmp_path, [*history(), ("c1", "visit", "soon", "", "z"), ("(2 rows)",)])
    assert "mapping.ts_format says how times are written, now auto" in said(findings, "wrong_type")
    assert said(findings, "bad_row").endswith("leave out remarks and totals).")


def test_seconds_among_milliseconds_are_named(tmp_path: Path) -> None:
    findings = found(tmp_path, [("c7", "visit", T0 // 1000, "", "z"), *history()])
    assert said(findings, "unit").startswith("error: 1 event of 1970 (row 1: customer 'c7', 1970-01-20T")
    assert said(findings, "unit").endswith(
        "would lie by the others as seconds: write the times of all in one unit."
    )
    findings = found(tmp_path, [("c7", "visit", 3_600_000, "", "z"), *history()])
    assert said(findings, "unit").startswith("warning: 1 event of 1970 (row 1: customer 'c7', 1970-01-01T01")


def test_ids_that_went_through_fractions_are_named(tmp_path: Path) -> None:
    findings = found(tmp_path, [*history(), ("123.0", "visit", T0, "", "z")])
    assert "1, such as '123.0'" in said(findings, "decimal_ids")


def test_customers_who_are_nobody_everybody_or_twice(tmp_path: Path) -> None:
    rows = history()
    rows += [("null", "visit", T0 + i * HOUR_MS, "", f"x{i}") for i in range(len(rows))]
    rows += [("C1", "visit", T0, "", "y")]
    findings = found(tmp_path, rows)
    assert said(findings, "one_customer").startswith("warning: One customer has 50 % of all events")
    assert said(findings, "nobody").endswith("'null'.")
    assert said(findings, "alike").startswith("warning: Ids that differ from another")
    single = found(tmp_path, [*history(), *[(f"s{i}", "visit", T0, "", f"s{i}") for i in range(200)]])
    assert said(single, "single").startswith(
        "note: 50 % of the customers with any activity have a single one"
    )


def test_duplicates_and_event_ids(tmp_path: Path) -> None:
    rows = history()
    twice = found(tmp_path, [*rows, *rows[:500]])
    assert said(twice, "duplicates").startswith("warning: 500 events")
    assert "folded once" in said(twice, "duplicates")
    without = found(tmp_path, [(*row[:4], "") for row in rows])
    assert "count twice" in said(without, "no_event_id")
    reused = found(tmp_path, [(*row[:4], f"session-{i // 5}") for i, row in enumerate(rows)])
    assert said(reused, "event_id_reused").startswith("error: ")


def test_a_record_that_grows_too_large(tmp_path: Path) -> None:
    text = said(
        found(tmp_path, history(), spec_of(windows={"30d": 60, "60d": 60, "90d": 60})), "record_bytes"
    )
    assert text.startswith("warning: A customer's record takes 2,416 bytes")


def test_rows_that_cannot_be_read_and_files_that_cannot(tmp_path: Path) -> None:
    rows = [*history(), ("c1", "visit", "soon", "", ""), ("c1", "purchase", T0, "a lot", "")]
    text = said(found(tmp_path, rows), "wrong_type")
    assert text.startswith("error: 2 rows (")
    assert f"line {len(rows)}: ts: expected" in text
    assert said(found(tmp_path, [], spec_of()), "empty") == "error: The file has no rows."
    missing = found(tmp_path, history(), header="who,type,ts,value,event_id")
    assert said(missing, "unreadable").startswith("error: ")
    assert "'user_id' for user_id" in missing[0].text
    nothing = found(tmp_path, [("c", "nothing", T0, "", "")])
    assert "None of the 1 row is" in said(nothing, "nothing_fits")


def test_numbers_in_words() -> None:
    shares = (0, 0.0000123, 0.0345, 0.1, 0.5, 0.996, 1)
    assert [percent(x) for x in shares] == ["0 %", "0.0012 %", "3.5 %", "10 %", "50 %", "over 99 %", "100 %"]
    spans = (30_000, 2 * HOUR_MS - 1, 2 * HOUR_MS, DAY_MS, 100 * DAY_MS)
    assert [days(x) for x in spans] == ["30 seconds", "120 minutes", "2 hours", "24 hours", "100 days"]
    assert (count(1, "row"), count(1200, "row")) == ("1 row", "1,200 rows")


@pytest.mark.data
@pytest.mark.parametrize("name", ["cdnow", "complete_journey"])
def test_the_public_logs_fit_their_specs(name: str) -> None:
    path = DATA / name / "events.csv.gz"
    if not path.exists():
        pytest.skip("no public logs beside the project")
    findings = check(path, load_spec(ROOT / "ops" / "specs" / f"{name}.yaml"))
    assert not [finding for finding in findings if finding.severity == "error"]


def test_a_composite_customer_is_said_in_words(tmp_path: Path) -> None:
    """What the key has to be, and how many go with a first part; parts that are nobody are found in any place."""
    rows = [(f"u{n % 5}", course, *row[1:]) for n, row in enumerate(history()) for course in ("math",)]
    rows += [("u0", course, "visit", T0 + n, "", f"x{n}") for n, course in enumerate(["art", "null", "a/b"])]
    header = f"user_id,course,{HEADER.partition(',')[2]}"
    text = said(found(tmp_path, rows, spec_of(customer=["user_id", "course"]), header), "composite")
    assert "user_id × course, written user_id/course: 8 customers of 5 user_id, at most 4 of one" in text
    assert "The Kafka key has to be user_id, in a part ~ written ~0" in text
    whole = spec_of(customer={"fields": ["user_id", "course"], "key": "whole"})
    text = said(found(tmp_path, rows, whole, header), "composite")
    assert "has to be user_id/course; a tombstone of user_id forgets all of theirs in its partition" in text
    assert "'null'" in said(found(tmp_path, rows, whole, header), "nobody")


def test_the_learners_spec_reads_what_it_says(tmp_path: Path) -> None:
    spec = load_spec(ROOT / "ops" / "specs" / "learners.yaml")
    rows = [
        ("ann", "math", "completed", "2026-03-01T12:00:00Z", 0.8),
        ("ann", "art", "opened", "2026-03-02T12:00:00Z", ""),
    ]
    assert "2 customers of 1 learner" in said(
        found(tmp_path, rows, spec, "learner,course,verb,at,score"), "composite"
    )
