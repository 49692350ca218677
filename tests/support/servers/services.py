"""The servers that tests talk to: real ones, started once a session, ended with it.

A test takes `stack` (Kafka and Valkey) or `debian_redis_url`, and names its topics and key prefixes by `unique_name`:
the servers are shared, the names are not. What a test needs and the machine lacks is a failure, never a skip.
"""

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ebbtide.ops.stack.local import LocalStack, LocalValkey, warm


@dataclass(frozen=True)
class Services:
    """Where the session's servers are."""

    kafka_url: str
    """Bootstrap servers, `127.0.0.1:PORT`."""
    redis_url: str
    """Valkey, `redis://127.0.0.1:PORT/0`."""


@pytest.fixture(scope="session")
def stack() -> Iterator[Services]:
    """One Kafka and one Valkey, shared by the whole session."""
    warm()  # once a machine: every broker of this suite then starts in half the time
    local = LocalStack()
    kafka_url, redis_url = local.start()
    try:
        yield Services(kafka_url, redis_url)
    finally:
        local.stop()


@pytest.fixture(scope="session")
def debian_redis_url() -> Iterator[str]:
    """The distribution's own redis-server, on a free port, shared by the whole session."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.fail("these tests run against the distribution's Redis, too: apt-get install redis-server")
    with LocalValkey(binary=Path(binary), name="redis") as redis:
        yield redis.url


@pytest.fixture
def unique_name() -> str:
    """A name no other test uses: for a topic, a consumer group, a key prefix."""
    return f"t{uuid.uuid4().hex[:12]}"
