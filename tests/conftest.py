"""Fixtures that every test may ask for, and the order of a run in several processes."""

import pytest

pytest_plugins = ["tests.support.servers.services"]

CHAOS = "tests/e2e/test_chaos.py"
ORDER = ("unit", "e2e", "integration", "contract")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One process alone takes the quick ones first, so that what is plainly wrong shows soon. Of several, one begins
    with the longest, which starts many workers, while the others do what waits for no clock."""
    if getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        items.sort(key=lambda item: _rank(item.path.relative_to(config.rootpath).as_posix()))


def _rank(path: str) -> int:
    return -1 if path == CHAOS else ORDER.index(path.split("/")[1])
