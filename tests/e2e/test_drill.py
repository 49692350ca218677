"""A drill, shortened: a worker is killed under load, and load, verdict and workers agree that nothing was lost."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.drill.faults import FAULTS
from ebbtide.ops.drill.run import Times, drill
from ebbtide.ops.drill.scene import Scene
from ebbtide.stream.clock import SystemClock
from tests.support.seams.models import publish

SPEC = Path(__file__).parents[2] / "ops/specs/demo.yaml"


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
def test_a_killed_worker_loses_no_alert(tmp_path: Path) -> None:
    """Each customer is scored at the first event of the load, and opens one episode: counted from outside."""
    model = publish(tmp_path / "models", spec=load_spec(SPEC), sizes=(32,)).parent
    settings = Settings(spec=SPEC, model=model)
    (tmp_path / "scene").mkdir()
    with Scene(settings, tmp_path / "scene", lambda _: None) as scene:
        times, fault = Times(before_s=2.0, after_s=2.0), FAULTS["kill-worker"]._replace(during_s=3.0)
        found = asyncio.run(drill(scene, fault, 100.0, 300, 5, SystemClock(), lambda _: None, times))
    assert found.kept, replace(found, seconds=[])
    assert found.customers > 50 and found.latency.n == found.customers
    assert {second.phase for second in found.seconds} == {"before", "during", "after"}


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
def test_a_static_successor_takes_over_without_a_pause(tmp_path: Path) -> None:
    """It starts beside the one whose name it has, and no partition waits for a start: 5 s at most, nothing lost."""
    model = publish(tmp_path / "models", spec=load_spec(SPEC), sizes=(32,)).parent
    settings = Settings(spec=SPEC, model=model, compiled=tmp_path / "xla")
    (tmp_path / "scene").mkdir()
    with Scene(settings, tmp_path / "scene", lambda _: None, workers=1, static=True) as scene:
        times, fault = Times(before_s=2.0, after_s=4.0), FAULTS["hand-over"]._replace(during_s=1.0)
        found = asyncio.run(drill(scene, fault, 50.0, 300, 5, SystemClock(), lambda _: None, times))
        assert found.kept, replace(found, seconds=[])
        assert len(scene.workers) == 1
    assert max(second.lag_s for second in found.seconds) <= 5.0
    assert found.latency.max_ms <= 5_000
