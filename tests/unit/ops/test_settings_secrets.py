"""Secrets among the settings: where each may be given, and that no message, file or table shows one."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, SecretStr

from ebbtide.featurestore.store.redis.credentials import Credentials
from ebbtide.ops.commands.config import shown
from ebbtide.ops.config.child import child_environment, for_child
from ebbtide.ops.config.load import SECRETS, load_settings
from ebbtide.ops.config.secrets import by_file, hidden, secret_places, texts_of
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.config.variables import variable
from ebbtide.ops.errors import SettingsError
from tests.unit.ops.test_settings import write


def test_what_is_shown_holds_no_secret_and_loads_again(tmp_path: Path) -> None:
    environment = {
        "EBBTIDE_REDIS_URL": "rediss://redis.example:6380/1", "EBBTIDE_REDIS__USERNAME": "worker",
        "EBBTIDE_REDIS__PASSWORD": "hunter2", "EBBTIDE_HTTP__TOKEN": "s3cret", "EBBTIDE_POLICY__COOLDOWN": "36h",
    }  # fmt: skip
    settings = load_settings(environment=environment)
    text = yaml.safe_dump(shown(settings))
    assert "hunter2" not in text and "s3cret" not in text
    assert "hunter2" not in repr(settings) and "s3cret" not in repr(settings)
    assert "rediss://redis.example:6380/1" in text and "username: worker" in text
    data = yaml.safe_load(text)
    file = write(tmp_path / "shown.yaml", **data)
    # A token of stars would be one that everybody knows.
    with pytest.raises(SettingsError, match=r"redis\.password is masked.*http\.token is masked"):
        load_settings(file, {})
    data["redis"]["password"] = data["http"]["token"] = None
    again = load_settings(write(file, **data), {})
    assert again.policy == settings.policy and again.local_kafka and again.redis.url == settings.redis.url


@pytest.mark.parametrize(
    "url",
    [
        "redis://:sec-ret@h:1/0", "rediss://ann:sec-ret@h/1", "redis://h/0?password=sec-ret", "redis://sec-ret@h",
        "redis://h/0?db=1&sentinel_password=sec-ret", "rediss://h?ssl_password=sec-ret", "redis://:x/sec-ret@h:6379/0",
        "redis+cluster://u:sec-ret@h1:1,u:sec-ret@h2:2", "unix://ann:sec-ret@/run/redis.sock",
    ],
)  # fmt: skip
def test_a_url_with_a_password_names_the_settings_for_it(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(environment={"EBBTIDE_REDIS_URL": url})
    for name in ("EBBTIDE_REDIS_URL", "redis.username", "redis.password", "redis.sentinel.password"):
        assert name in str(refused.value)
    assert "sec-ret" not in str(refused.value)


def test_a_url_without_credentials_is_shown_as_it_is() -> None:
    for url in (
        "redis://h:1/0", "rediss://h/1?ssl_ca_certs=/k&ssl_keyfile=/k", "redis+cluster://h1:1,[::1]:2/0",
        "redis+sentinel://h1:1,h2:2/main/0", "unix:///run/redis.sock", "rediss://h?ssl_ca_certs=/a%40b.pem",
    ):  # fmt: skip
        assert shown(load_settings(environment={"EBBTIDE_REDIS_URL": url}))["redis"]["url"] == url


def test_credentials_reach_the_client_from_their_settings(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("pw-1\n")
    environment = {
        "EBBTIDE_REDIS__USERNAME": "ann", "EBBTIDE_REDIS__PASSWORD_FILE": str(tmp_path / "pw"),
        "EBBTIDE_REDIS__SENTINEL__USERNAME": "bob", "EBBTIDE_REDIS__SENTINEL__PASSWORD": "pw-2",
        "EBBTIDE_REDIS__KEY_PASSWORD": "pw-3",
    }  # fmt: skip
    given = load_settings(environment=environment).redis.credentials()
    assert given == Credentials("ann", "pw-1", "bob", "pw-2", "pw-3")
    assert load_settings(environment={}).redis.credentials() == Credentials()


class _Inner(BaseModel):
    password: SecretStr | None = None
    key: SecretStr = SecretStr("")
    key_file: str = ""
    name: str = ""


class _Outer(BaseModel):
    sasl: _Inner | None = None
    tls: _Inner = _Inner()


def test_secrets_are_found_by_their_type_wherever_they_are() -> None:
    assert {("redis", "password"), ("redis", "sentinel", "password"), ("http", "token")} <= set(SECRETS)
    places = secret_places(_Outer)
    assert places == [("sasl", "password"), ("sasl", "key"), ("tls", "password"), ("tls", "key")]
    # A field of the name `key_file` is a setting, not the file of the secret `key`.
    assert by_file(_Outer, places) == [("sasl", "password"), ("tls", "password")]


@pytest.mark.parametrize("place", SECRETS, ids=".".join)
def test_every_secret_may_lie_in_a_file(place: tuple[str, ...], tmp_path: Path) -> None:
    """As a variable and in the settings' file; with nothing beside it, so its group may lack something else."""
    secret = "pw-in-file"
    (tmp_path / "secret").write_text(secret + "\n")
    name = variable(place) + "_FILE"

    def found(environment: dict[str, str], **data: Any) -> str:
        settings: Any
        settings, refusal = None, ""
        try:
            settings = load_settings(write(tmp_path / "e.yaml", **data), environment)
        except SettingsError as error:
            refusal = str(error)
        assert all(text not in refusal for text in (name, place[-1] + "_file", "pw-in-file"))
        if settings is None:
            return secret
        for part in place:
            settings = getattr(settings, part)
        assert isinstance(settings, SecretStr)
        return settings.get_secret_value()

    inner: Any = str(tmp_path / "secret")
    for part in reversed((*place[:-1], place[-1] + "_file")):
        inner = {part: inner}
    assert found({name: str(tmp_path / "secret")}) == secret
    assert found({}, **inner) == secret


def test_a_variable_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\r\n")
    by_path = {"EBBTIDE_HTTP__TOKEN_FILE": str(tmp_path / "token")}
    for yaml_says in ({"token": "yaml"}, {"token_file": "/nowhere"}):
        file = write(tmp_path / "e.yaml", http=yaml_says)
        for environment, token in ((by_path, "from-file"), ({"EBBTIDE_HTTP__TOKEN": "plain"}, "plain")):
            settings = load_settings(file, environment)
            assert settings.http.token is not None and settings.http.token.get_secret_value() == token


def test_a_secret_that_cannot_be_had_is_named_by_its_variable(tmp_path: Path) -> None:
    for name, content in (
        ("empty", b"\n"),
        ("binary", b"\xff\xfe"),
        ("nul", b"a\0b"),
        ("huge", b"x" * 70_000),
    ):
        (tmp_path / name).write_bytes(content)
    wrong = {
        str(tmp_path / "absent"): "No such file", str(tmp_path): "Is a directory", str(tmp_path / "empty"): "is empty",
        str(tmp_path / "binary"): "not text", str(tmp_path / "nul"): "NUL", str(tmp_path / "huge"): "65536 bytes",
        "/dev/zero": "NUL",
    }  # fmt: skip
    for file, words in wrong.items():
        with pytest.raises(SettingsError) as refused:
            load_settings(environment={"EBBTIDE_REDIS__PASSWORD_FILE": file, "EBBTIDE_HTTP__PORT": "x"})
        assert f"EBBTIDE_REDIS__PASSWORD_FILE: {file}" in str(refused.value) or words.startswith(("No", "Is"))
        assert "EBBTIDE_REDIS__PASSWORD_FILE" in str(refused.value) and words in str(refused.value)
        assert "http.port" in str(refused.value)  # and every other problem with it


@pytest.mark.parametrize(
    "names",
    [
        ("EBBTIDE_REDIS__PASSWORD", "EBBTIDE_REDIS__PASSWORD_FILE"),
        ("EBBTIDE_REDIS_URL", "EBBTIDE_REDIS__URL"),
        ("EBBTIDE_HTTP__TOKEN", "EBBTIDE_HTTP__TOKEN_FILE"),
        ("EBBTIDE_KAFKA_URL", "EBBTIDE_KAFKA__URL"),
    ],
)
def test_two_variables_for_one_setting_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "s").write_text("s3cret")
    value = {True: str(tmp_path / "s"), False: "h:1"}
    with pytest.raises(SettingsError) as refused:
        load_settings(environment={name: value[name.endswith("_FILE")] for name in names})
    assert all(name in str(refused.value) for name in names) and "keep one" in str(refused.value)


def test_a_file_that_gives_a_secret_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("s3cret")
    file = write(tmp_path / "e.yaml", http={"token": "a", "token_file": str(tmp_path / "s")})
    with pytest.raises(SettingsError, match=r"http\.token and http\.token_file"):
        load_settings(file, {})


def test_files_are_for_secrets_only() -> None:
    for name in (
        "EBBTIDE_HTTP__PORT_FILE",
        "EBBTIDE_KAFKA_URL_FILE",
        "EBBTIDE_REDIS_URL_FILE",
        "EBBTIDE_MODEL_FILE",
    ):
        with pytest.raises(SettingsError, match="Extra inputs"):
            load_settings(environment={name: "/etc/hostname"})


def test_no_message_quotes_a_secret(tmp_path: Path) -> None:
    secret = "hunter2-hunter2"
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"redis: {{url: 'redis://:{secret}@h\nhttp: [\n")
    nested = write(
        tmp_path / "nested.yaml", redis=f"redis://:{secret}@h", http={"token": [secret], "port": "x"}
    )
    as_written = {
        "alias": f"*{secret}", "tag": f"!!{secret}", "own tag": f"!{secret}", "anchor": f"&{secret} [",
        "percent": f"%{secret}", "at": f"@{secret}", "colon": f"{secret}: {secret}", "quote": f"'{secret}",
        "number": f"!!int {secret}", "bool": f"!!bool {secret}", "time": f"!!timestamp {secret}", "day": "2026-99-99",
    }  # fmt: skip
    unquoted = [tmp_path / f"{name}.yaml" for name in as_written]
    for file, value in zip(unquoted, as_written.values(), strict=True):
        file.write_text(f"http:\n  token: {value}\n")
        with pytest.raises(SettingsError, match="is not YAML") as quote_it:
            load_settings(file, {})
        assert "quote a value" in quote_it.value.hint
    # The secret itself, where the name of its file belongs; the last one as base64, which has slashes, too.
    pasted = [
        f"redis://:{secret}@h:6379/0",
        f"redis:/{secret}",
        secret,
        f"u:{secret}@h/0",
        f"{secret}/+ab/cd==",
        f"/{secret}/ab",
    ]
    environments: list[tuple[Path | None, dict[str, str]]] = [
        (broken, {}),
        (nested, {}),
        *((file, {}) for file in unquoted),
        *((None, {"EBBTIDE_REDIS__PASSWORD_FILE": value}) for value in pasted),
        (None, {"EBBTIDE_HTTP__TOKEN_FILE": secret * 1000}),
        (None, {"EBBTIDE_HTTP__TOKEN_FILE": f"{secret}/{secret * 1000}"}),
        (None, {"EBBTIDE_KAFKA_URL": f"kafka://u:{secret}@h:1"}),
        (None, {"EBBTIDE_KAFKA_URL": f"kafka://u:{secret}@h"}),
        (None, {"EBBTIDE_KAFKA_URL": f"u:{secret}@h"}),
        (None, {"EBBTIDE_HTTP__TOKEN": f"{secret} "}),
        (None, {"EBBTIDE_REDIS_URL": f"redis://:{secret}@h", "EBBTIDE_REDIS__URL__PORT": "1"}),
        (None, {"EBBTIDE_REDIS_URL": f"redis://:{secret}@h", "EBBTIDE_COLOUR": "red"}),
    ]
    for given, environment in environments:
        with pytest.raises(SettingsError) as refused:
            load_settings(given, environment)
        assert all(name in str(refused.value) for name in environment if name.endswith("_FILE"))
        error: BaseException | None = refused.value
        while error is not None:
            assert secret not in str(error) and secret not in repr(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    with pytest.raises(SettingsError, match=r"line \d+"):
        load_settings(broken, {})
    with pytest.raises(SettingsError, match=r"alias.yaml is not YAML at line 2, column 10 \(quote"):
        load_settings(tmp_path / "alias.yaml", {})


def test_an_empty_token_is_none() -> None:
    """It would be a token that everybody has who gives none."""
    for token in ("", " ", "a b", "tab\t", "ü"):
        with pytest.raises(ValueError, match="header"):
            Settings.model_validate({"http": {"token": token}})


def test_a_secret_is_hidden_however_it_is_written() -> None:
    texts = texts_of(['p@ss"wörd', "token-1", "abc"])
    line = """a p@ss"wörd, {"x": "p@ss\\"wörd"}, {"x": "p@ss\\"w\\u00f6rd"}, 'p@ss"wörd', token-1, abc"""
    assert hidden(line, texts) == """a ***, {"x": "***"}, {"x": "***"}, '***', ***, abc"""


def test_a_child_is_told_its_secrets_by_its_environment_alone(tmp_path: Path) -> None:
    environment = {
        "EBBTIDE_REDIS_URL": "redis://h:1/0",
        "EBBTIDE_REDIS__PASSWORD": "pw-1",
        "EBBTIDE_HTTP__TOKEN": "0123",
        "EBBTIDE_MODEL": "m",
    }
    settings = load_settings(environment=environment)
    data, secrets = for_child(settings)
    file = write(tmp_path / "child.yaml", **data)
    assert "pw-1" not in file.read_text() and "0123" not in file.read_text() and "***" not in file.read_text()
    assert load_settings(file, child_environment(**secrets)) == settings
    assert for_child(load_settings(environment={}))[1] == {}
