"""Fixtures that every test may ask for, and the order of a run in several processes."""

import pytest

pytest_plugins = ["tests.support.servers.services"]

ORDER = (
    "tests/e2e/test_chaos.py",  # starts many workers, and counts seconds: beside it runs what waits for no clock
    "tests/unit/featurestore/", "tests/unit/model/", "tests/e2e/",
    "tests/contract/test_scorer.py", "tests/contract/test_slot.py",  # minutes each: the last file is done by one alone
    "tests/integration/test_factory.py", "tests/integration/test_train.py",
    "tests/integration/", "tests/contract/",
    "tests/unit/",  # files of seconds, so that all processes end together
)  # fmt: skip
"""Of files, by how their path begins."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One process alone takes the quick ones first, so that what is plainly wrong shows soon. Of several, one begins
    with the longest, and the shortest come last; a file is one process's."""
    if getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        items.sort(key=lambda item: _rank(item.path.relative_to(config.rootpath).as_posix()))


def _rank(path: str) -> int:
    return next(rank for rank, begin in enumerate(ORDER) if path.startswith(begin))
