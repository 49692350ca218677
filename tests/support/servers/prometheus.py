"""A real Prometheus (Debian's) on a free loopback port: it scrapes what it is told, and answers queries."""

import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

import yaml

from ebbtide.ops.stack.server import Keeper, Local, Server, free_ports

START_S = 30.0


class Prometheus(Local):
    """Blocking; a context manager. targets: `host:port` of what is scraped as job "ebbtide", changed by `watch`.
    rules: the text of a rule file."""

    def __init__(self, targets: Sequence[str] = (), *, rules: str = "", every: str = "1s") -> None:
        self._targets, self._rules, self._every = list(targets), rules, every
        self.address = ""

    def start(self) -> str:
        """Returns `address` once it answers. Raises StackError."""
        binary = shutil.which("prometheus")
        assert binary is not None, "these tests run a real Prometheus: apt-get install prometheus"
        self._keeper = Keeper()
        folder = self._keeper.directory / "prometheus"
        self._server = Server(self._keeper, "prometheus", folder)
        self._file = folder / "targets.json"
        (folder / "rules.yaml").write_text(self._rules or "groups: []\n")
        self.watch(self._targets)
        job = {
            "job_name": "ebbtide",
            "file_sd_configs": [{"files": [str(self._file)], "refresh_interval": "1s"}],
        }
        paces = dict.fromkeys(("scrape_interval", "evaluation_interval", "scrape_timeout"), self._every)
        config = {
            "global": paces,
            "rule_files": ["rules.yaml"], "scrape_configs": [job],
        }  # fmt: skip
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        (port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{port}"
        self._server.spawn(
            [
                binary, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage",
            ]
        )  # fmt: skip
        self._server.wait_ready(self._answers, START_S)
        return self.address

    def stop(self) -> None:
        self._keeper.end()

    def watch(self, targets: Sequence[str]) -> None:
        """Scrape these from now on, and no others."""
        written = self._file.with_suffix(".new")
        written.write_text(json.dumps([{"targets": list(targets)}]))
        written.replace(self._file)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query: samples or series."""
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.address}/api/v1/query?{asked}", timeout=10) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
        return found

    def alerts(self) -> set[str]:
        """The alerts that fire now, by name, and by name and severity, `Name:page`."""
        firing = [each["metric"] for each in self.query('ALERTS{alertstate="firing"}')]
        return {name for a in firing for name in (a["alertname"], f"{a['alertname']}:{a['severity']}")}

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.address + "/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
