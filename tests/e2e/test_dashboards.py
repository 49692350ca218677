"""Every panel of every dashboard has data, from a real Prometheus that scrapes a running worker."""

import asyncio
import math
import urllib.request
from pathlib import Path

import pytest

from ebbtide.ops.alerting.duration import Scale
from ebbtide.ops.alerting.rules import text
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.dashboards.build import ANNOTATIONS, BOARDS
from ebbtide.ops.dashboards.panels import Panel
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.topics import ensure_topics
from tests.alerts.feed import Feed
from tests.support.servers.prometheus import Prometheus
from tests.support.workers.outages import outage, until

RARE = {"Forgotten", "Drift"}
"""Panels whose lines are 0 or NaN in a short and good hour: there, but no figure is asked of them."""


def silent(prometheus: Prometheus, panel: Panel) -> list[str]:
    """Its expressions that have no series, or no figure in any."""
    without = []
    for target in panel.targets:
        expr = target.expr.replace("$__rate_interval", "4s").replace("$__range", "8s")
        found = prometheus.query(expr.replace("$instance", ".*"))
        values = [float(each["value"][1]) for each in found]
        if not values or (panel.title not in RARE and all(math.isnan(value) for value in values)):
            without.append(f"{panel.title}: {target.expr}")
    return without


def scrape(address: str) -> bytes:
    with urllib.request.urlopen(address + "/metrics", timeout=10) as answer:
        body: bytes = answer.read()
    return body


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
async def test_every_panel_has_data(tmp_path: Path) -> None:
    """Also the annotations' questions, which have an answer only when something changes, are taken by Prometheus. The
    scrape says so itself: nothing of it is rejected."""
    with outage(tmp_path, sizes=(32,)) as servers:
        settings = servers.settings("boards", policy=PolicySettings(enter=0.01, exit=0.0, cooldown=0))
        direct = servers.direct(settings)
        await ensure_topics(direct.kafka, topic_specs(direct))
        rules = text(Scale(1 / 900, 1.0))
        with (
            WorkerProcess(settings, tmp_path) as worker,
            Prometheus(rules=rules, every="500ms") as prometheus,
        ):
            await asyncio.to_thread(worker.wait_ready)
            prometheus.watch([worker.address.removeprefix("http://")])
            async with Feed(direct.kafka, per_s=30.0) as feed:
                await feed.raw(b"no json", b"jane", 0)
                every = [panel for board in BOARDS for row in board.rows for panel in row.panels]
                assert len(every) > 35
                without = ["not asked yet"]

                async def all_have_data() -> bool:
                    nonlocal without
                    await asyncio.sleep(1.0)
                    asked = [await asyncio.to_thread(silent, prometheus, panel) for panel in every]
                    without = [expr for each in asked for expr in each]
                    return not without

                await until(all_have_data, "data in all panels", instead=lambda: "\n".join(without))
                for _, expr, _ in ANNOTATIONS:
                    prometheus.query(expr)
                (scraped,) = prometheus.query("scrape_samples_scraped")
                assert float(scraped["value"][1]) > 400
            began_s = SystemClock().monotonic_s()
            body = await asyncio.to_thread(scrape, worker.address)
            print(f"scrape: {len(body)} bytes, {1000 * (SystemClock().monotonic_s() - began_s):.1f} ms")
