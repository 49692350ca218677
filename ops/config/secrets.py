"""Secrets among the settings: which they are, how they come from files, and how they are never shown.

    redis.password, http.token, …   every field of type SecretStr, found by walking the settings' types
    <name>_file                     beside each, in the file or as a variable: the secret is what that file holds

A secret is a whole text, never a part of one: nothing has to guess where a password ends. The invariant: what `hidden`
lets through holds none.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr

from ebbtide.ops.errors import SettingsError

SettingPath = tuple[str, ...]
"""A setting's path, as in ("redis", "password")."""

FILE = "_file"
SECRET_BYTES_MAX = 64 << 10
"""A password is dozens of bytes, a token with claims a few thousand; what is more is the wrong file, or /dev/zero."""
HIDDEN_CHARS_MIN = 4
"""A shorter secret is in every other word of a log: to hide it would hide the log, and it protects nothing."""
STARS = "***"


def secret_places(model: type[BaseModel]) -> list[SettingPath]:
    """Where a model, or a model within it, holds a SecretStr."""
    return list(_walk(model, ()))


def _walk(model: type[BaseModel], at: SettingPath) -> Iterator[SettingPath]:
    for name, field in model.model_fields.items():
        for kind in _kinds(field.annotation):
            if issubclass(kind, SecretStr):
                yield (*at, name)
            elif issubclass(kind, BaseModel):
                yield from _walk(kind, (*at, name))


def _kinds(annotation: Any) -> Iterator[type]:
    """The classes that an annotation names, through unions and the like."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def by_file(model: type[BaseModel], places: Iterable[SettingPath]) -> list[SettingPath]:
    """Those of the places whose `_file` is free: where a field has that very name, it is a setting of its own."""
    return [place for place in places if place[-1] + FILE not in _group(model, place).model_fields]


def _group(model: type[BaseModel], place: SettingPath) -> type[BaseModel]:
    for name in place[:-1]:
        model = next(
            kind for kind in _kinds(model.model_fields[name].annotation) if issubclass(kind, BaseModel)
        )
    return model


def secrets_of(settings: BaseModel) -> dict[SettingPath, str]:
    """The secrets that are set."""
    found = {}
    for place in secret_places(type(settings)):
        value: Any = settings
        for name in place:
            value = getattr(value, name, None)
        if isinstance(value, SecretStr):
            found[place] = value.get_secret_value()
    return found


def read_secret(file: str) -> str:
    """What the file holds, without the newline at its end. Raises SettingsError, which says nothing of its content, and
    repeats the file's name only where that cannot be the secret itself, given in the wrong place."""
    if "://" in file:
        raise SettingsError("this is a URL: give the name of a file that holds it")
    try:
        with Path(file).open("rb") as opened:
            data = opened.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise SettingsError(f"cannot read {_named(file)}: {error.strerror}") from None
    except ValueError:
        raise SettingsError("this is no file's name") from None
    try:
        secret = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is not text in UTF-8") from None
    if not secret or len(data) > SECRET_BYTES_MAX or "\0" in secret:
        wrong = "is empty" if not secret else f"holds a NUL, or more than {SECRET_BYTES_MAX} bytes"
        raise SettingsError(f"{file} {wrong}")
    return secret


def _named(file: str) -> str:
    """A name that led to no file, for a message. In base64 there are slashes, too, so the first folder has to exist."""
    folders = Path(file).parents  # of a/b/c: a/b, a, the root or the current folder
    with suppress(OSError):  # too long a name
        if "@" not in file and len(folders) > 1 and folders[-2].is_dir():
            return file
    return "the file that it names"


def fill_from_files(
    data: dict[str, Any], in_files: Iterable[SettingPath], names: Mapping[SettingPath, str]
) -> list[str]:
    """Put the secrets of files in their places. Returns what is wrong, by the name a person can change."""
    problems = []
    for secret in in_files:
        group = group_at(data, secret)
        if group is None or secret[-1] + FILE not in group:
            continue
        file = group.pop(secret[-1] + FILE)
        place = (*secret[:-1], secret[-1] + FILE)
        said = names.get(place, ".".join(place))
        if group.get(secret[-1]) is not None:
            problems.append(f"{'.'.join(secret)} and {said} are both given: keep one")
            continue
        try:
            group[secret[-1]] = read_secret(str(file))
        except SettingsError as error:
            problems.append(f"{said}: {error.args[0]}")
    return problems


def drop(data: dict[str, Any], secret: SettingPath) -> None:
    """Forget a secret, and the file that holds it."""
    group = group_at(data, secret)
    if group is not None:
        group.pop(secret[-1], None)
        group.pop(secret[-1] + FILE, None)


def group_at(data: dict[str, Any], place: SettingPath) -> dict[str, Any] | None:
    """What holds a setting; None where nothing does."""
    group: Any = data
    for name in place[:-1]:
        group = group.get(name) if isinstance(group, dict) else None
    return group if isinstance(group, dict) else None


def texts_of(secrets: Iterable[str]) -> list[str]:
    """What must not be seen of secrets: as it is, in a line of JSON, and in an error's own words; longest first."""
    forms = (str, lambda text: json.dumps(text)[1:-1], _json, lambda text: repr(text)[1:-1])
    found = {form(text) for text in secrets for form in forms}
    return sorted((text for text in found if len(text) >= HIDDEN_CHARS_MIN), key=len, reverse=True)


def _json(text: str) -> str:
    """With other letters than ASCII as they are."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def hidden(text: str, secrets: Iterable[str]) -> str:
    """The text with stars for each of `secrets` (of `texts_of`) in it."""
    for secret in secrets:
        text = text.replace(secret, STARS)
    return text


def put(data: dict[str, Any], place: SettingPath, value: Any) -> None:
    """Set it there, in groups that are made where they are missing. Raises SettingsError."""
    for name in place[:-1]:
        inner = data.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{'.'.join(place)} cannot be set: {name} is not a group of settings")
        data = inner
    data[place[-1]] = value


def strings_at(data: Mapping[str, Any], places: Iterable[SettingPath]) -> dict[SettingPath, str]:
    """The texts that plain data holds at the places."""
    found = {}
    for place in places:
        value: Any = data
        for name in place:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, str):
            found[place] = value
    return found
