"""Fixtures that every test may ask for, and the order of a run in several processes."""

import pytest

pytest_plugins = ["tests.support.servers.services"]

LONGEST_FIRST = ("e2e", "integration", "contract", "unit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One process alone takes the quick ones first, so that what is plainly wrong shows soon. Of several, none shall
    begin the longest test when all others have nothing left to do."""
    if getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONGEST_FIRST.index(item.path.relative_to(config.rootpath).parts[1]))
