"""Reasons: one of a group, in the direction asked for, in words that a spec may change."""

from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.reasons import SEQUENCE_WORDS, Reasons
from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec


def spec_of(**more: Any) -> Spec:
    return parse_spec({
        "name": "shop", "horizon": "14d", "memory": "120d", "windows": {"7d": 7, "90d": 9},
        "kinds": [{"name": "visit"}, {"name": "purchase", "aggregate": ["sum"]}], **more,
    })  # fmt: skip


SPEC = spec_of()
AT = {feature.name: i for i, feature in enumerate(features(SPEC))}


def row(**figures: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.zeros(len(AT), np.float32)
    for name, figure in figures.items():
        values[AT[name]] = figure
    return values


def test_all_windows_of_a_kind_are_one_reason() -> None:
    values = row(purchase_since=23, purchase_count_7d=0, purchase_count_90d=4, silence=2)
    parts = row(
        purchase_since=0.5, purchase_count_7d=0.4, purchase_count_90d=-0.1, purchase_sum_90d=0.3, silence=0.6
    )
    first, second = Reasons(SPEC).top(values, parts, 0.0, 1, 3)
    assert (first.group, first.feature) == ("purchase", "purchase_since")
    assert first.contribution == pytest.approx(1.1) and first.value == 23.0
    assert first.words == "4 purchases in the last 90d, the last one 23 days ago"
    assert second.group == "silence"


def test_the_parts_of_all_groups_are_all_of_the_parts() -> None:
    rng = np.random.default_rng(3)
    parts = rng.normal(size=len(AT)).astype(np.float32)
    reasons = Reasons(SPEC)
    both = [*reasons.top(row(), parts, 0.25, 1, 99), *reasons.top(row(), parts, 0.25, -1, 99)]
    assert sum(each.contribution for each in both) == pytest.approx(float(parts.sum()) + 0.25, abs=1e-5)
    assert {each.group for each in both} == set(reasons.groups)


def test_the_sequence_may_be_a_reason_and_has_no_value() -> None:
    (only,) = Reasons(SPEC).top(row(), row(silence=1.0), -0.5, -1, 3)
    assert only == ("sequence", "sequence", None, -0.5, SEQUENCE_WORDS)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"silence": 23, "gap_usual": 6}, "no activity for 23.0 days; before, one every 6.0 days"),
        ({"silence": 23, "gap_missing": 1}, "no activity for 23.0 days"),
    ],
)
def test_a_silence_is_said_beside_the_usual_one(values: dict[str, float], words: str) -> None:
    (only,) = Reasons(SPEC).top(row(**values), row(silence=1.0), 0.0, 1, 3)
    assert only.words == words


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"purchase_never": 1}, "never any purchases"),
        ({"purchase_since": 100}, "no purchases for 100 days"),
        ({"purchase_since": 0.2, "purchase_count_90d": 3}, "3 purchases in the last 90d, the last one today"),
        (
            {"purchase_since": 5, "purchase_count_90d": 1},
            "1 purchase in the last 90d, the last one 5.0 days ago",
        ),
    ],
)
def test_a_kind_is_said_by_how_many_and_when(values: dict[str, float], words: str) -> None:
    (only,) = Reasons(SPEC).top(row(**values), row(purchase_since=1.0), 0.0, 1, 3)
    assert only.words == words


@pytest.mark.parametrize(
    ("kind", "several", "one"),
    [
        ({"name": "page_view"}, "4,000 page views", "1 page view"),
        ({"name": "search"}, "4,000 searches", "1 search"),
        ({"name": "reply"}, "4,000 replies", "1 reply"),
        ({"name": "commit", "noun": "commits"}, "4,000 commits", "1 commit"),
        (
            {"name": "sent", "noun": "letters sent", "one": "letter sent"},
            "4,000 letters sent",
            "1 letter sent",
        ),
        ({"name": "buy", "noun": "Käufe", "one": "Kauf"}, "4,000 Käufe", "1 Kauf"),
        ({"name": "mailed", "noun": "mailings"}, "4,000 mailings", "mailings: 1"),
    ],
    ids=lambda each: each["name"] if isinstance(each, dict) else "",
)
def test_one_is_said_as_one(kind: dict[str, str], several: str, one: str) -> None:
    spec = spec_of(kinds=[kind])
    count = next(each for each in features(spec) if each.name == f"{kind['name']}_count_7d")
    assert [count.describe(n) for n in (4_000, 1)] == [f"{said} in the last 7d" for said in (several, one)]
    assert parse_spec(dump_spec(spec)) == spec


def test_no_sentence_counts_one_of_several() -> None:
    """Whatever the figure, 1 is followed by no plural of ours."""
    own = spec_of(
        kinds=[{"name": "visit"}, {"name": "renewal", "role": "attribute", "attribute": "date"}],
        days_active=[7],
    )
    said = {each.name: each.describe(1.0) for each in features(own)}
    assert said["activity_total"] == "1 activity so far"
    assert said["tenure"] == "customer for 1 day"
    assert said["renewal_until"] == "1 day until renewal"
    assert not [words for words in said.values() if words.startswith("1 ") and words.split()[1].endswith("s")]


def test_a_spec_says_it_in_its_own_words() -> None:
    own = spec_of(
        words={
            "purchase": "kein Kauf seit {purchase_since:.0f} Tagen; davor {purchase_count_90d:.0f} in 90 Tagen",
            "silence_ratio": "still: das {value:.0f}-Fache",
            "sequence": "die letzten Schritte",
        }
    )
    assert parse_spec(dump_spec(own)) == own
    values = row(purchase_since=23, purchase_count_90d=4, silence_ratio=3, gap_missing=1)
    said = Reasons(own).top(values, row(purchase_since=3.0, silence_ratio=2.0), 1.0, 1, 3)
    assert [each.words for each in said] == [
        "kein Kauf seit 23 Tagen; davor 4 in 90 Tagen", "still: das 3-Fache", "die letzten Schritte",
    ]  # fmt: skip


def test_words_that_name_nothing_are_refused_all_at_once() -> None:
    wrong = spec_of(
        words={"nothing": "x", "purchase": "{no_such:.0f}", "silence": "{value", "tenure": "{value:.0f} days"}
    )
    with pytest.raises(SpecError) as refused:
        Reasons(wrong)
    said = str(refused.value)
    assert (
        "nothing is no feature" in said
        and "no_such" in said
        and "silence: " in said
        and "tenure" not in said.split("(", maxsplit=1)[0]
    )
