"""Settings: where each may be said, what goes before what, and that every mistake is named at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from featurestore.spec import load_spec
from ops.errors import SettingsError
from ops.settings import DEFAULT_SPEC, child_environment, load_settings, shown


def write(path: Path, **data: object) -> Path:
    path.write_text(yaml.safe_dump(data))
    return path


def test_without_anything_the_defaults_hold_and_the_servers_are_local() -> None:
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
    settings = load_settings(environment=environment, **options)
    assert settings.http.port == 3
    assert settings.kafka.group == "variable"
    assert settings.kafka.topic == "file"
    assert settings.model == Path("file")


def test_the_file_of_the_option_goes_before_the_one_of_the_variable(tmp_path: Path) -> None:
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


def test_what_is_shown_holds_no_secret_and_loads_again(tmp_path: Path) -> None:
    environment = {
        "EBBTIDE_REDIS_URL": "rediss://worker:hunter2@redis.example:6380/1", "EBBTIDE_HTTP__TOKEN": "s3cret",
        "EBBTIDE_POLICY__COOLDOWN": "36h",
    }  # fmt: skip
    settings = load_settings(environment=environment)
    text = yaml.safe_dump(shown(settings))
    assert "hunter2" not in text and "s3cret" not in text
    assert "hunter2" not in repr(settings) and "s3cret" not in repr(settings)
    assert "rediss://worker:***@redis.example:6380/1" in text
    again = load_settings(write(tmp_path / "shown.yaml", **yaml.safe_load(text)), {})
    assert again.policy == settings.policy and again.local_kafka


def test_a_password_without_a_user_is_hidden_too() -> None:
    assert (
        shown(load_settings(environment={"EBBTIDE_REDIS_URL": "redis://:pw@h:1/0"}))["redis"]["url"]
        == "redis://:***@h:1/0"
    )


def test_a_cooldown_longer_than_the_memory_is_refused() -> None:
    spec = load_spec(DEFAULT_SPEC)
    settings = load_settings(environment={"EBBTIDE_POLICY__COOLDOWN": "121d"})
    with pytest.raises(SettingsError, match=r"policy\.cooldown 121d .* memory 120d"):
        settings.check_spec(spec)
    load_settings(environment={}).check_spec(spec)


def test_a_child_process_gets_our_environment_but_none_of_our_settings() -> None:
    environment = child_environment(EBBTIDE_MODEL="m")
    assert environment["EBBTIDE_MODEL"] == "m"
    assert [name for name in environment if name.startswith("EBBTIDE_")] == ["EBBTIDE_MODEL"]
    assert "PATH" in environment


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:pa@ss@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://ann:secret@host/1", "rediss://ann:***@host/1"),
        ("redis://host/0?password=secret&db=1", "redis://host/0?password=***&db=1"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock?password=***"),
    ],
)
def test_no_password_is_shown_wherever_it_stands(url: str, said: str) -> None:
    settings = load_settings(environment={"EBBTIDE_REDIS_URL": url})
    assert shown(settings)["redis"]["url"] == said
