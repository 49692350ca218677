"""Statistics against counts made apart, and the anomalies that a schema names in words."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.factory.schema import Schema, check, check_skew, dump_schema, infer, parse_schema
from ebbtide.model.factory.statistics import (
    Statistics,
    jensen_shannon,
    l_infinity,
    span_like,
    statistics_of,
)

SPEC = parse_spec({
    "name": "shop", "horizon": "7d", "memory": "60d", "windows": {"7d": 7},
    "kinds": [
        {"name": "visit"},
        {"name": "order", "aggregate": ["sum"]},
        {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "paid"]},
    ],
})  # fmt: skip
START = 1_700_000_000_000
N = 4_000


def log(seed: int = 1, **columns: Any) -> EventBatch:
    """Events over 40 days: amounts of orders with some missing, plans with some unlisted."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, N, p=[0.7, 0.2, 0.1]).astype(np.uint8)
    value = np.full(N, np.nan)
    value[kind == 1] = rng.gamma(2.0, 20.0, (kind == 1).sum())
    value[(kind == 1) & (rng.random(N) < 0.05)] = np.nan
    value[kind == 2] = rng.choice([0.0, 1.0, 2.0], (kind == 2).sum(), p=[0.02, 0.5, 0.48])
    made: dict[str, Any] = {
        "customers": [f"c{i}" for i in range(50)], "customer": rng.integers(0, 50, N).astype(np.int32), "kind": kind,
        "time": np.sort(START + rng.integers(0, 40 * DAY_MS, N)), "value": value,
        "event_id": np.zeros(N, np.uint64), "position": np.arange(N),
    }  # fmt: skip
    return EventBatch(**{**made, **columns})


def figures(of: EventBatch, spec: Spec = SPEC, **more: Any) -> Statistics:
    return statistics_of(spec, of, START + 40 * DAY_MS, 4, rows=len(of), **more)


def test_counts_are_those_of_a_naive_count() -> None:
    events = log()
    found = figures(events)
    width = (START + 40 * DAY_MS - int(events.time.min())) / 4
    counted: Counter[tuple[int, int]] = Counter()
    who: dict[tuple[int, int], set[int]] = {}
    for time, kind, customer in zip(
        events.time.tolist(), events.kind.tolist(), events.customer.tolist(), strict=True
    ):
        span = min(int((time - int(events.time.min())) / width), 3)
        counted[span, kind] += 1
        who.setdefault((span, kind), set()).add(customer)
    for at, part in enumerate(found.spans):
        for k, kind in enumerate(SPEC.kinds):
            assert abs(part.kinds[kind.name].events - counted[at, k]) <= 1, (
                "an edge falls between two milliseconds"
            )
            assert abs(part.kinds[kind.name].customers - len(who[at, k])) <= 1
    assert sum(span.events for span in found.spans) == found.whole.events == N


def test_a_fields_figures_are_those_of_its_values() -> None:
    events = log()
    order = figures(events).whole.kinds["order"].fields["order.value"]
    values = [v for v, k in zip(events.value.tolist(), events.kind.tolist(), strict=True) if k == 1]
    known = sorted(v for v in values if v == v)  # noqa: PLR0124 - the plainest test for NaN
    assert (order.count, order.missing) == (len(known), len(values) - len(known))
    assert order.mean == pytest.approx(sum(known) / len(known))
    assert order.quantiles is not None
    assert (order.quantiles[0], order.quantiles[-1]) == (known[0], known[-1])
    assert order.quantiles[3] == pytest.approx((known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2)
    assert sum(order.histogram) == len(known) and max(order.histogram) < 0.1 * len(known)
    plan = figures(events).whole.kinds["plan"].fields["plan.value"]
    assert plan.histogram == [int((events.value[events.kind == 2] == code).sum()) for code in (0, 1, 2)]
    assert plan.quantiles is None, "a category's code is no number"


def test_distances_are_bounded_and_zero_of_the_same() -> None:
    assert l_infinity({"a": 0.5, "b": 0.5}, {"a": 0.2, "c": 0.8}) == pytest.approx(0.8)
    assert jensen_shannon([1, 2, 3], [10, 20, 30]) == pytest.approx(0.0)
    assert jensen_shannon([1, 0], [0, 1]) == pytest.approx(1.0)
    assert jensen_shannon([0, 0], [0, 1]) == 0.0


def test_an_inferred_schema_fits_its_log_and_others_alike() -> None:
    schema = infer(figures(log()))
    assert check(figures(log()), schema) == []
    assert check(figures(log(seed=2)), schema) == []
    assert parse_schema(dump_schema(schema), "it") == schema, "as it is edited, it is read"


def broken(name: str) -> Statistics:
    events = log()
    kind, value = events.kind.copy(), events.value.copy()
    late = events.time > START + 30 * DAY_MS
    match name:
        case "negative":
            value[np.flatnonzero(kind == 1)[0]] = -1.0
        case "absurd":
            value[np.flatnonzero(kind == 1)[0]] = 1e9
        case "missing":
            value[kind == 1] = np.nan
        case "gone":
            kind[kind == 1] = 0
        case "unlisted":
            value[kind == 2] = 0.0
        case "ended":
            kind[late & (kind == 1)] = 0
        case "unit":
            value[late & (kind == 1)] *= 100
        case "mix":
            kind[late] = 1
            value[late] = 40.0
    return figures(replace(events, kind=kind, value=value))


@pytest.mark.parametrize(
    ("name", "where", "words", "severity"),
    [
        ("negative", "order.value", "-1 is below its min 0", "error"),
        ("absurd", "order.value", "1e+09 is above its max", "error"),
        ("missing", "order.value", "0.0% of", "error"),
        ("gone", "order", "no event of this kind", "error"),
        ("unlisted", "plan.value", "100.0% of its values are not listed", "error"),
        ("ended", "order", "no event since", "warning"),
        ("unit", "order.value", "its values moved at 2023-12-14", "warning"),
        ("mix", "log", "the share of", "warning"),
    ],
)
def test_what_does_not_fit_is_said_in_words(name: str, where: str, words: str, severity: str) -> None:
    found = check(broken(name), infer(figures(log())))
    assert any(each.where == where and words in each.words and each.severity == severity for each in found), (
        found
    )
    assert all(each.advice for each in found)


def test_unknown_types_are_named_by_how_many_they_are() -> None:
    found = figures(log(), unknown_types={"rare": 1, "often": 900})
    (said,) = check(found, infer(figures(log())))
    assert said.words == "event types that no kind covers: 'often' (900), 'rare' (1)"
    silent = infer(figures(log())).model_copy(update={"unknown_types": "ignore"})
    assert check(found, silent) == []


def test_schema_and_spec_that_part_ways_are_named() -> None:
    schema = Schema.model_validate({"kinds": {"visit": {}, "order": {}, "call": {}}})
    said = {each.where: each for each in check(figures(log()), schema)}
    assert said["call"].severity == "error" and "the spec does not" in said["call"].words
    assert said["plan"].severity == "warning" and "the schema does not" in said["plan"].words


@pytest.mark.parametrize(
    "text", ["kinds: {visit: {requird: true}}", "kinds: [", "[]", "kinds: {a: {fields: {b: {min: x}}}}"]
)
def test_a_schema_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(SpecError, match=r"schema\.yaml"):
        parse_schema(text, "schema.yaml")


@pytest.mark.parametrize(
    ("name", "where"),
    [("unit", "order.value"), ("mix", "log"), ("unlisted", "plan.value"), ("as it was", "")],
)
def test_what_is_live_is_held_against_the_log(name: str, where: str) -> None:
    """By the log's bins: the same log of other days has no skew, one that changed is named."""
    known, kind = figures(log()), log(seed=2).kind.copy()
    value = log(seed=2).value.copy()
    match name:
        case "unit":
            value[kind == 1] *= 100
        case "mix":
            kind[kind == 0], value[:] = 1, 40.0
        case "unlisted":
            value[kind == 2] = 0.0
    live = span_like(known.whole, SPEC, replace(log(seed=2), kind=kind, value=value))
    found = {each.where: each for each in check_skew(known.whole, live, infer(known))}
    assert set(found) >= {where} if where else not found
    assert not where or "from history to the live topic since 2023-11-14" in found[where].words
    few = span_like(known.whole, SPEC, log(seed=2).take(np.arange(N) < 20))
    assert check_skew(known.whole, few, infer(known)) == [], "of twenty events nothing can be said"
