"""Settings and environment for the processes that we start, and what our own process tells libraries by it.

An environment is read by nobody but us, a file by whoever finds it: secrets travel by the one, all else by the other.
"""

import os
from pathlib import Path
from typing import Any

from ebbtide.ops.config.secrets import put, secrets_of
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.config.variables import PREFIX, variable

XLA_CACHE_FLAG = "--tf_xla_persistent_cache_directory"


def for_child(settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """The same settings for a process that we start: plain data for a file, and the secrets, each as a variable, since
    an environment is read by nobody but us, and a file by whoever finds it."""
    data = settings.model_dump(mode="json")
    put(data, ("policy", "file"), None)  # what it says is in the others
    secrets = secrets_of(settings)
    for place in secrets:
        put(data, place, None)
    return data, {variable(place): secret for place, secret in secrets.items()}


def keep_compiled(folder: Path) -> None:
    """Have XLA keep what it compiles in `folder`, unless TF_XLA_FLAGS says where. Before TensorFlow's first import."""
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if XLA_CACHE_FLAG not in flags:
        os.environ["TF_XLA_FLAGS"] = f"{flags} {XLA_CACHE_FLAG}={folder}".strip()


def quiet_libraries() -> None:
    """Keep what TensorFlow tells its own developers off the terminal: what stops it is raised besides. Before its
    first import, or it has no effect."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def child_environment(**own: str) -> dict[str, str]:
    """Our environment for a process that we start, with `own` as its only EBBTIDE_* variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | own
