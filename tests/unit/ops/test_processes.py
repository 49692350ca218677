"""Several workers' metrics as one exposition, and their cores side by side."""

import subprocess
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families as parse

from ebbtide.ops.config.settings import HttpSettings, Settings
from ebbtide.ops.http.probes import probes
from ebbtide.ops.http.server import HttpServer
from ebbtide.ops.observe.at_scrape import ModelNow
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.ops.processes.face import Face
from ebbtide.ops.processes.merge import labelled, merge
from ebbtide.ops.processes.supervisor import Supervisor, share_of_cores


def exposed(version: int) -> str:
    metrics = Metrics()
    metrics.at_scrape.model = lambda: ModelNow("churn", version)
    metrics.queued(version)
    return metrics.render()[0].decode()


def test_each_sample_says_whose_it_is_in_whole_families() -> None:
    """What is merged holds every sample of each process, and Prometheus' own linter takes it."""
    texts = {"0": exposed(3), "1": exposed(4)}
    merged = merge(texts)
    found = {
        (s.labels.pop("process"), s.name, tuple(sorted(s.labels.items()))): s.value
        for family in parse(merged)
        for s in family.samples
    }
    expected = {
        (process, s.name, tuple(sorted(s.labels.items()))): s.value
        for process, text in texts.items()
        for family in parse(text)
        for s in family.samples
    }
    assert found == expected and len(found) > 500
    families = [line.split(" ")[2] for line in merged.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=merged.encode(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


async def test_a_process_that_does_not_answer_is_not_ready(tmp_path: Path) -> None:
    """It is there with a 0, which the rule NotReady waits for: one that is started again and again is not just gone."""
    supervisor = Supervisor(Settings(), 2, tmp_path)
    metrics = Metrics()
    metrics.at_scrape.not_ready = list
    port = int(supervisor.workers[1].address.rpartition(":")[2])
    worker = HttpServer(HttpSettings(port=port), probes(metrics, lambda: ""))
    async with aiohttp.ClientSession() as session:
        face = HttpServer(HttpSettings(port=0), Face(supervisor, session).routes())
        try:
            await worker.start()
            async with session.get(await face.start() + "/metrics") as answer:
                families = {family.name: family for family in parse(await answer.text())}
        finally:
            await face.stop()
            await worker.stop()
    ready = {each.labels["process"]: each.value for each in families["ebbtide_ready"].samples}
    assert ready == {"0": 0.0, "1": 1.0}


def test_a_label_goes_before_whatever_a_value_holds() -> None:
    assert labelled("a 1.0", "0") == 'a{process="0"} 1.0'
    assert labelled('a{b="} x{"} 1.0', "1") == 'a{process="1",b="} x{"} 1.0'
    assert labelled("a{} 2", "1") == 'a{process="1"} 2'
    assert merge({}) == "" and merge({"0": ""}) == ""


def test_cores_are_shared_side_by_side_or_not_at_all() -> None:
    assert share_of_cores(range(8), 2) == [range(4), range(4, 8)]
    assert share_of_cores([0, 1, 2, 5, 6], 2) == [[0, 1], [2, 5]]
    assert share_of_cores([0, 1], 2) == [(), ()]
