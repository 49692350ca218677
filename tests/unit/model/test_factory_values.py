"""What is carried from stage to stage comes back as it was, and nothing but our own types comes back."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.slices import Slices
from ebbtide.model.factory.values import Carrier, read_value, write_value
from ebbtide.model.graph.calibrator import Calibrator

PLAIN = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | st.text(max_size=8)
TREES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@given(value=TREES)
def test_plain_values_come_back(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("value")
    write_value(folder, value, {})
    assert same(read_value(folder, {}), value)


def test_columns_come_back_bit_for_bit(tmp_path: Path) -> None:
    n = 5
    events = EventBatch(
        ["a", "ü"], np.zeros(n, np.int32), np.arange(n, dtype=np.uint8), np.arange(n) + 1,
        np.array([np.nan, -0.0, np.inf, 1e-310, 1.5]), np.full(n, 2**64 - 1, np.uint64), np.arange(n),
    )  # fmt: skip
    inputs = {"features": np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)}
    examples = Examples(events.customer, events.time, np.zeros(n, np.uint8), np.zeros(n, np.int8), inputs)
    value = {
        "log": events,
        "rows": examples,
        "slices": Slices((1, 2), None, (3, 4)),
        "map": Calibrator(a=0.1 + 0.2),
    }
    write_value(tmp_path, value, {})
    found = read_value(tmp_path, {})
    assert found["slices"] == value["slices"] and found["map"] == value["map"]
    assert found["log"].customers == events.customers and found["log"].more is None
    for name in ("customer", "kind", "time", "value", "event_id", "position"):
        one, other = getattr(found["log"], name), getattr(events, name)
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), name
    assert found["rows"].features.tobytes() == examples.features.tobytes()


def test_a_carrier_says_what_is_stored(tmp_path: Path) -> None:
    carriers = {"path": Carrier(Path, str, Path)}
    write_value(tmp_path, [Path("a/b")], carriers)
    assert read_value(tmp_path, carriers) == [Path("a/b")]
    with pytest.raises(ValueError, match="'path'"):
        read_value(tmp_path, {})


def test_what_is_not_ours_is_not_carried(tmp_path: Path) -> None:
    for number, value in enumerate((object(), {1, 2}, np.array([object()]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises((TypeError, ValueError)):
            write_value(folder, value, {})


@pytest.mark.parametrize(
    "named", ["subprocess:Popen", "ebbtide.model.factory.values:read_value", "ebbtide.model.x:Y"]
)
def test_a_file_cannot_name_what_is_made(tmp_path: Path, named: str) -> None:
    (tmp_path / "value.json").write_text(json.dumps({"as": "dataclass", "of": {}, "named": named}))
    with pytest.raises((ValueError, ModuleNotFoundError)):
        read_value(tmp_path, {})
