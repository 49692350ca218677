"""Who we are to Redis, apart from where it is: a URL may be shown and logged, what is here may not."""

import re
from dataclasses import dataclass, field
from typing import Any

_NAMED = re.compile(r"[?&]\w*(?:user|pass)\w*=", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user of Redis, a user of the Sentinels, and what opens our certificate's key; each may be missing."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    key_password: str | None = field(default=None, repr=False)

    def options(self) -> dict[str, Any]:
        """As redis-py's connections take them: for Redis, not for its Sentinels."""
        said = {"username": self.username, "password": self.password, "ssl_password": self.key_password}
        return {name: value for name, value in said.items() if value}

    def sentinel_options(self) -> dict[str, Any]:
        said = {"username": self.sentinel_username, "password": self.sentinel_password}
        return {name: value for name, value in said.items() if value}


def in_url(url: str) -> bool:
    """A URL that holds a user or a password, or looks as if: an @ that is none is written %40."""
    return "@" in url or _NAMED.search(url) is not None
