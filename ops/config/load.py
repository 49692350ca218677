"""The settings in force, from one YAML file and the environment.

    built-in defaults  <  the file given by --config or EBBTIDE_CONFIG  <  EBBTIDE_* variables  <  command line options

Any secret may also be given by file, as EBBTIDE_REDIS__PASSWORD_FILE or `redis: {password_file: …}`. Every problem is
reported at once, by the name a person can change, and no message quotes a secret.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ebbtide.featurestore.store.redis.credentials import in_url
from ebbtide.ops.config import variables
from ebbtide.ops.config.policy import over
from ebbtide.ops.config.secrets import (
    by_file,
    drop,
    fill_from_files,
    hidden,
    put,
    secret_places,
    strings_at,
    texts_of,
)
from ebbtide.ops.config.settings import LOCAL, Settings
from ebbtide.ops.config.variables import PREFIX
from ebbtide.ops.errors import SettingsError

SECRETS = secret_places(Settings)
URLS = (("kafka", "url"), ("redis", "url"))


def load_settings(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings in force. `options` are dotted paths to values ("http.port": 0); None means not given.

    Raises SettingsError naming every setting that does not fit.
    """
    env = dict(os.environ if environment is None else environment)
    if file is None and env.get(PREFIX + "CONFIG"):
        file = Path(env[PREFIX + "CONFIG"])
    data: dict[str, Any] = _read(file) if file is not None else {}
    in_files = by_file(Settings, SECRETS)
    if isinstance(data.get("policy"), str):
        data["policy"] = {"file": data["policy"]}
    said, problems = variables.read(env, in_files)
    names = {one.place: one.name for one in said}
    for one in said:
        secret = variables.secret_of(one.place, in_files) or one.place
        if secret in in_files:  # said here in whatever way, the file's own way of saying it counts no more
            drop(data, secret)
        # As text: pydantic reads numbers from it where the setting is one, and a token of digits stays a token.
        put(data, one.place, one.value)
    for path, value in (options or {}).items():
        if value is not None:
            put(data, tuple(path.split(".")), value)
    problems += fill_from_files(data, in_files, names)
    _add_policy_file(data)
    if isinstance(data.get("kafka"), dict) and data["kafka"].get("url") is None:
        data["kafka"]["url"] = LOCAL
    secrets = strings_at(data, SECRETS)
    problems += [
        f"{names.get(place, '.'.join(place))} is masked, as `ebbtide config show` prints it: give the secret itself"
        for place, text in secrets.items()
        if re.fullmatch(r"\*{3,}", text)
    ]
    settings = None
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        problems += [
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_url=False, include_context=False, include_input=False)
        ]
    if settings is None or problems:
        # A URL is no secret; one that somebody wrote a password into is refused, and not quoted.
        unseen = [*secrets.values(), *(url for url in strings_at(data, URLS).values() if in_url(url))]
        raise SettingsError(
            "settings do not fit: " + hidden("; ".join(problems), texts_of(unseen)),
            hint="change them in --config FILE, or as EBBTIDE_GROUP__NAME",
        )
    return settings


def _read(file: Path, hint: str = "give --config FILE") -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not text in UTF-8") from None
    # A value that does not fit its tag (`!!int x`, a date of 2026-99-99) is none of PyYAML's own errors.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        raise SettingsError(
            f"{file} is not YAML{_where(error)}",
            hint="quote a value that begins with * & ! or another sign, or holds a colon, 'like this'",
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{file} must hold a mapping of settings")
    # A group whose lines are all commented out says nothing, like a variable that is empty.
    return {name: value for name, value in data.items() if value is not None}


def _add_policy_file(data: dict[str, Any]) -> None:
    """What the policy's own file says lies under what is said beside it."""
    policy = data.get("policy")
    if isinstance(policy, dict) and isinstance(policy.get("file"), str):
        data["policy"] = over(_read(Path(policy["file"]), "set policy.file"), policy)


def _where(error: Exception) -> str:
    """Where, and not what: the library's own words quote the line, or of `token: *hunter2` the password."""
    mark = getattr(error, "problem_mark", None)
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
