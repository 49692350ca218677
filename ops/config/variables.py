"""EBBTIDE_* variables: which setting each names, which of them are secrets in files, and which are Kubernetes' own.

    EBBTIDE_KAFKA__GROUP=blue                 kafka.group: double underscores between the groups
    EBBTIDE_KAFKA_URL, EBBTIDE_REDIS_URL      two short names; EBBTIDE_POLICY is policy.file
    EBBTIDE_REDIS__PASSWORD_FILE=/run/s/r     the secret redis.password is what that file holds
    EBBTIDE_SERVICE_HOST=10.96.0.7            a Service is named `ebbtide`: nothing of ours

It knows names and refuses to know values, but for the last case: only a value as Kubernetes writes it makes a variable
Kubernetes' own, so that `EBBTIDE_PORT=8080` is still told that it is no setting. The invariant: two variables never
speak of one setting.
"""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from ebbtide.ops.config.secrets import FILE, SettingPath

PREFIX = "EBBTIDE_"
SHORT: dict[str, SettingPath] = {
    "EBBTIDE_KAFKA_URL": ("kafka", "url"),
    "EBBTIDE_REDIS_URL": ("redis", "url"),
    "EBBTIDE_POLICY": ("policy", "file"),
}

# What the kubelet puts into a container for each Service of its namespace: for `ebbtide` and `ebbtide-anything`.
_SERVICE = re.compile(
    r"""EBBTIDE_(?:[A-Z0-9]+_)*?
    (?: SERVICE_HOST=[0-9a-fA-F.:]+
      | SERVICE_PORT(?:_[A-Z0-9_]+)?=\d+
      | PORT(?:_\d+_(?:TCP|UDP|SCTP))?=(?:tcp|udp|sctp)://[0-9a-fA-F.:\[\]]+:\d+
      | PORT_\d+_(?:TCP|UDP|SCTP)_PROTO=(?:tcp|udp|sctp)
      | PORT_\d+_(?:TCP|UDP|SCTP)_PORT=\d+
      | PORT_\d+_(?:TCP|UDP|SCTP)_ADDR=[0-9a-fA-F.:]+
    )""",
    re.VERBOSE,
)


class Said(NamedTuple):
    """What a variable says: the place of a setting, or with `_file` at its end that of a secret's file."""

    name: str
    place: SettingPath
    value: str


def variable(place: SettingPath) -> str:
    """The variable that names a setting."""
    return PREFIX + "__".join(place).upper()


def read(environment: Mapping[str, str], in_files: Collection[SettingPath]) -> tuple[list[Said], list[str]]:
    """What the variables say, and in words where two of them speak of one setting. `in_files`: places of the secrets
    that may also be given by file. An empty variable counts as not set, as compose files and unit files leave them."""
    said: dict[SettingPath, Said] = {}
    problems = []
    for name, value in environment.items():
        if not name.startswith(PREFIX) or name == PREFIX + "CONFIG" or not value:
            continue
        if _SERVICE.fullmatch(f"{name}={value}"):
            continue
        one = Said(name, _place(name), value)
        of = secret_of(one.place, in_files) or one.place
        if of in said:
            problems.append(f"{said[of].name} and {name} both give {'.'.join(of)}: keep one")
        said[of] = one
    return list(said.values()), problems


def _place(name: str) -> SettingPath:
    return SHORT.get(name) or tuple(name.removeprefix(PREFIX).lower().split("__"))


def secret_of(place: SettingPath, in_files: Collection[SettingPath]) -> SettingPath | None:
    """The secret that a place gives by file; None when it is a setting itself."""
    secret = (*place[:-1], place[-1].removesuffix(FILE))
    return secret if place[-1].endswith(FILE) and secret in in_files else None
