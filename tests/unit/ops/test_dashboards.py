"""The dashboards' files: what the code says, every expression a valid one, nothing without words."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from ebbtide.ops.alerting.rules import document
from ebbtide.ops.dashboards.build import ANNOTATIONS, BOARDS, HERE, board_json
from ebbtide.ops.dashboards.panels import Board


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def plain(expr: str) -> str:
    """An expression with Grafana's variables filled in."""
    return expr.replace("$__rate_interval", "1m").replace("$__range", "1h").replace("$instance", ".*")


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_the_file_is_what_the_code_says(board: Board) -> None:
    said = "python -m ebbtide.ops.dashboards.build writes them"
    assert (HERE / f"{board.uid}.json").read_text() == board_json(board), said


@pytest.mark.parametrize("path", sorted(HERE.glob("*.json")), ids=lambda path: path.stem)
def test_panels_have_words_units_and_ids_of_their_own(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == path.stem and board["description"]
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in panels(board):
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"]


def expressions() -> Iterator[str]:
    for board in BOARDS:
        yield from (t.expr for row in board.rows for panel in row.panels for t in panel.targets)
    yield from (expr for _, expr, _ in ANNOTATIONS)
    yield from (rule["expr"] for group in document()["groups"] for rule in group["rules"])


def test_every_expression_parses() -> None:
    """By another parser than Prometheus' own."""
    for expr in expressions():
        promql_parser.parse(plain(expr))
