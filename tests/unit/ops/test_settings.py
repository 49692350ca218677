"""Settings: where each may be said, what goes before what, and that every mistake is named at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ebbtide.featurestore.spec import load_spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.ops.config.child import child_environment, for_child
from ebbtide.ops.config.load import load_settings
from ebbtide.ops.config.policy import TargetPolicySettings
from ebbtide.ops.config.settings import DEFAULT_SPEC
from ebbtide.ops.errors import SettingsError


def write(path: Path, **data: object) -> Path:
    path.write_text(yaml.safe_dump(data))
    return path


def test_without_anything_the_defaults_hold() -> None:
    settings = load_settings(environment={})
    assert settings.local_kafka and settings.local_redis
    assert settings.http.host == "127.0.0.1"
    assert settings.spec == DEFAULT_SPEC


def test_a_file_yields_to_variables_and_they_yield_to_options(tmp_path: Path) -> None:
    file = write(
        tmp_path / "e.yaml", http={"port": 1}, kafka={"group": "file", "topic": "file"}, model="file"
    )
    environment = {"EBBTIDE_CONFIG": str(file), "EBBTIDE_HTTP__PORT": "2", "EBBTIDE_KAFKA__GROUP": "variable"}
    options: dict[str, Any] = {"http.port": 3, "model": None}
    settings = load_settings(environment=environment, options=options)
    assert settings.http.port == 3
    assert settings.kafka.group == "variable"
    assert settings.kafka.topic == "file"
    assert settings.model == Path("file")


def test_an_options_file_goes_before_a_variables(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.yaml", model="one"), write(tmp_path / "other.yaml", model="other")
    assert load_settings(one, {"EBBTIDE_CONFIG": str(other)}).model == Path("one")


def test_the_two_urls_have_short_names() -> None:
    environment = {"EBBTIDE_KAFKA_URL": "kafka://a:9092,b:9092/", "EBBTIDE_REDIS_URL": "redis://c:6379/0"}
    settings = load_settings(environment=environment)
    assert settings.kafka.url == "a:9092,b:9092"
    assert not settings.local_kafka and not settings.local_redis


def test_an_empty_variable_counts_as_not_set() -> None:
    """As compose files and unit files leave them."""
    environment = {"EBBTIDE_REDIS_URL": "", "EBBTIDE_CONFIG": "", "EBBTIDE_HTTP__PORT": ""}
    assert load_settings(environment=environment).local_redis


def test_an_empty_group_or_file_counts_as_not_set(tmp_path: Path) -> None:
    """As a file is left whose lines are commented out."""
    file = tmp_path / "settings.yaml"
    for text in ("", "# redis: {url: x}\n", "redis:\n  # url: x\npolicy:\nkafka:\n"):
        file.write_text(text, encoding="utf-8")
        assert load_settings(file, {}) == load_settings(environment={}), text
        said = {"EBBTIDE_REDIS_URL": "redis://other:6379", "EBBTIDE_POLICY__ENTER": "0.5"}
        settings = load_settings(file, said)
        assert (settings.redis.url, settings.policy.enter) == ("redis://other:6379", 0.5), text


def test_variables_are_text_until_a_setting_reads_them() -> None:
    """A token or a group of digits stays what it is; a number, a duration and a choice are read."""
    environment = {
        "EBBTIDE_HTTP__TOKEN": "0123", "EBBTIDE_KAFKA__GROUP": "42", "EBBTIDE_POLICY__ENTER": "0.7",
        "EBBTIDE_POLICY__COOLDOWN": "3d", "EBBTIDE_ALERTS_FROM": "start",
    }  # fmt: skip
    settings = load_settings(environment=environment)
    assert settings.http.token is not None and settings.http.token.get_secret_value() == "0123"
    assert settings.kafka.group == "42"
    assert settings.policy.enter == 0.7
    assert settings.policy.cooldown_ms == 3 * 86_400_000
    assert settings.alerts_from == "start"


def test_every_problem_is_named_at_once() -> None:
    environment = {
        "EBBTIDE_HTTP__PORT": "ninety", "EBBTIDE_KAFKA_URL": "localhost", "EBBTIDE_LOGS__LEVEL": "loud",
        "EBBTIDE_COLOUR": "red",
    }  # fmt: skip
    with pytest.raises(SettingsError) as refused:
        load_settings(environment=environment)
    for name in ("http.port", "EBBTIDE_KAFKA_URL", "logs.level", "colour"):
        assert name in str(refused.value)
    assert "--config" in refused.value.hint


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"EBBTIDE_KAFKA__TOPIC": "x", "EBBTIDE_TOPICS__ALERTS": "x"}, ("kafka.topic", "output topic")),
        ({"EBBTIDE_TOPICS__ALERTS": "x", "EBBTIDE_TOPICS__DEAD_LETTERS": "x"}, ("alerts", "dead_letters")),
        ({"EBBTIDE_KAFKA__HEARTBEAT_INTERVAL_S": "9"}, ("session_timeout_s", "heartbeat_interval_s")),
        ({"EBBTIDE_KAFKA__FETCH_RECORDS_MAX": "5000"}, ("kafka.fetch_records_max",)),
        ({"EBBTIDE_KAFKA_URL": "a:1", "EBBTIDE_KAFKA__URL__HOST": "a"}, ("kafka.url",)),
        ({"EBBTIDE_TRACES__URL": "http://me:pw1234@collector:4318"}, ("traces.url", "without user")),
        ({"EBBTIDE_TRACES__URL": "collector:4317"}, ("traces.url", "http://collector:4318")),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(
    environment: dict[str, str], names: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(environment=environment)
    for name in names:
        assert name in str(refused.value)


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"No such file.*--config"):
        load_settings(tmp_path / "missing.yaml", {})
    broken = tmp_path / "broken.yaml"
    broken.write_text("kafka: [")
    with pytest.raises(SettingsError, match="is not YAML"):
        load_settings(broken, {})
    broken.write_text("- a\n- b\n")
    with pytest.raises(SettingsError, match="mapping"):
        load_settings(broken, {})


def test_a_cooldown_longer_than_the_memory_is_refused() -> None:
    spec = load_spec(DEFAULT_SPEC)
    settings = load_settings(environment={"EBBTIDE_POLICY__COOLDOWN": "121d"})
    with pytest.raises(SettingsError, match=r"policy\.cooldown 121d .* memory 120d"):
        settings.check_spec(spec)
    load_settings(environment={}).check_spec(spec)


def test_a_record_too_large_for_a_commit_is_refused_at_start() -> None:
    """Else the first full batch would be a step that no store takes, again after each restart."""
    wide = parse_spec(
        {
            "name": "wide", "horizon": "14d", "memory": "300d", "kinds": [{"name": f"kind{n}"} for n in range(32)],
            "windows": {"64h": 64, "64d": 64, "128d": 64, "256d": 64},
        }
    )  # fmt: skip
    cooldown = {"EBBTIDE_POLICY__COOLDOWN": "1d"}
    with pytest.raises(SettingsError, match=r"1,000 customers with records of .*kafka\.fetch_records_max"):
        load_settings(environment=cooldown).check_spec(wide)
    load_settings(environment={**cooldown, "EBBTIDE_KAFKA__FETCH_RECORDS_MAX": "100"}).check_spec(wide)


def test_a_child_process_gets_none_of_our_settings() -> None:
    environment = child_environment(EBBTIDE_MODEL="m")
    assert environment["EBBTIDE_MODEL"] == "m"
    assert [name for name in environment if name.startswith("EBBTIDE_")] == ["EBBTIDE_MODEL"]
    assert "PATH" in environment


SERVICE = {
    "EBBTIDE_SERVICE_HOST": "10.96.0.7", "EBBTIDE_SERVICE_PORT": "8080", "EBBTIDE_SERVICE_PORT_HTTP": "8080",
    "EBBTIDE_PORT": "tcp://10.96.0.7:8080", "EBBTIDE_PORT_8080_TCP": "tcp://10.96.0.7:8080",
    "EBBTIDE_PORT_8080_TCP_PROTO": "tcp", "EBBTIDE_PORT_8080_TCP_PORT": "8080", "EBBTIDE_PORT_8080_TCP_ADDR": "fd00::7",
    "EBBTIDE_REDIS_MASTER_SERVICE_HOST": "10.96.0.8", "EBBTIDE_REDIS_MASTER_PORT": "tcp://[fd00::8]:6379",
    "EBBTIDE_KAFKA_PORT_9092_TCP_ADDR": "10.96.0.9", "EBBTIDE_KAFKA_SERVICE_PORT_CLIENTS_TLS": "9093",
}  # fmt: skip


def test_what_kubernetes_says_of_a_service_is_no_setting() -> None:
    assert load_settings(environment=SERVICE) == load_settings(environment={})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EBBTIDE_HTPP__PORT", "8080"), ("EBBTIDE_PORT", "8080"), ("EBBTIDE_HTTP_PORT", "8080"),
        ("EBBTIDE_HOST", "10.0.0.1"),
        ("EBBTIDE_SERVICE_HOST", "localhost"), ("EBBTIDE_SERVICE_PORT", "tcp"), ("EBBTIDE_KAFKA__PORT", "tcp://10.0.0.1:1"),
        ("EBBTIDE_PORT_HTTP_TCP", "tcp://10.0.0.1:1"), ("EBBTIDE_SERVICE_HOSTS", "10.0.0.1"), ("EBBTIDE_", "x"),
        ("EBBTIDE_TOKEN", "0123"),
    ],
)  # fmt: skip
def test_a_slip_is_refused_all_the_same(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match="Extra inputs"):
        load_settings(environment={name: value})


def test_http_is_for_this_machine_unless_told_otherwise() -> None:
    http = load_settings(environment={}).http
    assert (http.host, http.token, http.connections_max) == ("127.0.0.1", None, 64)


POLICY = """
exit: 0.3
dwell: 2d
bands: {critical: 0.85, worst: 0.95}
alerts_per_minute_max: 60
holdout: 0.05
targets: {activity: {cooldown: 3d, bands: {}}}
"""


def test_a_policy_is_read_from_its_own_file(tmp_path: Path) -> None:
    """As one setting, by its variable or within the group; what is said beside it wins, and a child gets the same."""
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    config = write(tmp_path / "c.yaml", policy=str(file))
    policy = load_settings(config, {}).policy
    assert (policy.exit, policy.dwell_ms, policy.holdout) == (0.3, 2 * DAY_MS, 0.05)
    assert policy.bands == {"critical": 0.85, "worst": 0.95}
    assert policy.band_names == ("high", "critical", "worst")
    assert load_settings(environment={"EBBTIDE_POLICY": str(file)}).policy == policy
    beside = {"EBBTIDE_POLICY__DWELL": "4d", "EBBTIDE_POLICY__BANDS__WORST": "0.9"}
    over = load_settings(config, beside).policy
    assert (over.dwell_ms, over.exit, over.bands) == (4 * DAY_MS, 0.3, {"critical": 0.85, "worst": 0.9})
    data, _ = for_child(load_settings(config, beside))
    again = load_settings(write(tmp_path / "child.yaml", **data), {})
    assert again.policy == over.model_copy(update={"file": None})
    shown = over.shown()
    assert (shown["dwell"], shown["targets"]["activity"]["cooldown"]) == ("4d", "3d")


def test_a_policy_says_everything_that_does_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("enter: 1.5\nholdout: 1\nalerts_per_minute_max: 0\nbnads: {a: 0.5}\n")
    with pytest.raises(SettingsError) as error:
        load_settings(environment={"EBBTIDE_POLICY": str(file)})
    for name in ("policy.enter", "policy.holdout", "policy.alerts_per_minute_max", "policy.bnads"):
        assert name in str(error.value)
    with pytest.raises(SettingsError, match="cannot read"):
        load_settings(environment={"EBBTIDE_POLICY": str(tmp_path / "none.yaml")})


def test_a_policy_has_to_fit_the_spec_and_the_model(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    settings = load_settings(environment={"EBBTIDE_POLICY": str(file)})
    spec = load_spec(DEFAULT_SPEC)
    settings.check_spec(spec)
    rules = settings.policy.rules(0.6, 0.4)
    assert [(band.name, band.enter) for band in rules.every_band] == [
        ("high", 0.6), ("critical", 0.85), ("worst", 0.95)
    ]  # fmt: skip
    assert settings.policy.rules(0.6, 0.4, "activity").bands == ()
    assert settings.policy.rules(0.6, 0.4, "activity").cooldown_ms == 3 * DAY_MS
    with pytest.raises(
        ValueError, match=r"each band must enter above the one before it: high 0\.9, critical 0\.85"
    ):
        settings.policy.rules(0.9, 0.4)
    wrong = settings.policy.model_copy(update={"targets": {"purchase": TargetPolicySettings(enter=0.5)}})
    with pytest.raises(SettingsError, match="names purchase: the spec has activity"):
        settings.model_copy(update={"policy": wrong}).check_spec(spec)
    long = settings.policy.model_copy(
        update={"targets": {"activity": TargetPolicySettings(cooldown=900 * DAY_MS)}}
    )
    with pytest.raises(SettingsError, match=r"policy\.targets\.activity\.cooldown 900d is longer"):
        settings.model_copy(update={"policy": long}).check_spec(spec)
