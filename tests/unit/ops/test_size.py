"""The sizing table: exact on round numbers, and never less of anything for more load."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.ops.cli import run
from ebbtide.ops.size.costs import Costs
from ebbtide.ops.size.plan import Load, plan

COSTS = Costs(
    cpu_us=100.0, score_us=60.0, customer_bytes=1_000.0, event_bytes=100.0, apply_us=50.0,
    worker_bytes=1e9,
)  # fmt: skip


def test_a_plan_by_hand() -> None:
    """10,000 events/s a core, half of it used: 8 workers for 40,000, and one to spare. Redis: 100 GB are four masters
    of 25 GB, and 40,000 commits of 50 µs are two cores, half used."""
    found = plan(Load(40_000, 100e6, retention_days=1.0), COSTS)
    assert (found.workers, found.cores, found.gpus) == (9, 18, 0)
    assert (found.redis_gb, found.redis_masters, found.redis_memory_gb) == (100.0, 4, 50.0)
    assert found.partitions == 40
    assert found.kafka_mb_per_s == 4.0 and found.kafka_gb == pytest.approx(4e6 * 86_400 * 3 / 1e9)
    assert found.catch_up_s == 600.0 and found.alerts_per_s == 400.0
    assert plan(Load(40_000, 100e6, gpu=True), COSTS).workers == 5


def test_a_small_load_needs_one_of_each_and_a_spare() -> None:
    found = plan(Load(1, 1), COSTS)
    assert (found.workers, found.redis_masters, found.partitions) == (2, 1, 8)


@given(
    events=st.floats(1, 1e7),
    customers=st.floats(1, 1e10),
    more=st.floats(1, 100),
    gpu=st.booleans(),
    used=st.floats(0.1, 0.95),
)
def test_more_load_never_needs_less(
    events: float, customers: float, more: float, gpu: bool, used: float
) -> None:
    small = plan(Load(events, customers, gpu=gpu, used=used), COSTS)
    large = plan(Load(events * more, customers * more, gpu=gpu, used=used), COSTS)
    for name in ("workers", "partitions", "redis_gb", "redis_masters", "kafka_gb"):
        assert getattr(large, name) >= getattr(small, name), name
    per_core = 1e6 / (COSTS.cpu_us - (COSTS.score_us if gpu else 0))
    assert (small.workers - 1) * per_core * used >= events * 0.999_999, "the peak fits without the spare one"


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (Load(0.0, 1.0), "events_per_s"),
        (Load(1.0, -1.0), "customers"),
        (Load(1.0, 1.0, used=0.0), "used"),
        (Load(1.0, 1.0, used=1.0), "used"),
    ],
)
def test_a_load_of_nothing_is_refused(wrong: Load, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        plan(wrong, COSTS)


def test_the_command_takes_the_costs_of_a_bench(tmp_path: Path) -> None:
    bench, out = tmp_path / "bench.json", tmp_path / "size.json"
    ours = {"events_per_s": 1e4, "cores": {"redis": 0.1}, "parts_us": {"score": 5.0}, "rss_bytes_max": 5e8}
    bench.write_text(json.dumps({"cpu_us": 50.0, "ours": ours}))
    arguments = ["--events-per-s", "20000", "--customers", "1e6", "--bench", str(bench), "--json", str(out)]
    assert run(["size", *arguments]) == 0
    found = json.loads(out.read_text())
    assert (found["costs"]["cpu_us"], found["costs"]["score_us"]) == (50.0, 5.0)
    assert found["costs"]["apply_us"] == pytest.approx(10.0)
    assert found["plans"][0]["workers"] == 3
    assert run(["size", "--json", str(out)]) == 0
    assert len(json.loads(out.read_text())["plans"]) == 5
    bench.write_text("{}")
    assert run(["size", *arguments]) == 2
    assert run(["size", "--customers", "5"]) == 2
    assert set(asdict(Load(1, 1))) <= set(found["plans"][0])
