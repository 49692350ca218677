"""Servers that several files here start for each test."""

from collections.abc import Iterator

import pytest

from ebbtide.ops.stack.local import LocalValkey


@pytest.fixture
def stack_redis() -> Iterator[LocalValkey]:
    with LocalValkey(appendonly=False) as server:
        yield server
