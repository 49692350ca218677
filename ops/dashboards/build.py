"""Boards as Grafana's JSON, by Grafana's own SDK: `python -m ebbtide.ops.dashboards.build` writes the chart's files.

The SDK is a tool of developers: an installed Ebbtide has the JSON and never imports this.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import bargauge, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models

from ebbtide.ops.dashboards.business import BUSINESS
from ebbtide.ops.dashboards.model import MODEL
from ebbtide.ops.dashboards.panels import Board, Panel
from ebbtide.ops.dashboards.service import SERVICE

BOARDS = (SERVICE, MODEL, BUSINESS)
HERE = Path(__file__).parents[1] / "helm/ebbtide/files/dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = {"lines": 8, "number": 8, "bars": 8}
HEIGHT = {"lines": 8, "number": 5, "bars": 8}
ANNOTATIONS = (
    ("Model swaps", "changes(ebbtide_model_version[1m]) > 0", "purple"),
    ("Rebalances", "changes(ebbtide_partitions_owned[1m]) > 0", "orange"),
)
"""What explains a step in a line."""


def board_json(board: Board) -> str:
    """The dashboard's JSON, the same for the same board."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["ebbtide"])
        .refresh("30s")
        .time("now-3h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("instance")
            .label("Worker")
            .datasource(SOURCE)
            .query("label_values(ebbtide_ready, instance)")
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    )
    for name, expr, color in ANNOTATIONS:
        built.annotation(
            dashboard.AnnotationQuery()
            .name(name)
            .datasource(SOURCE)
            .expr(expr)
            .icon_color(color)
            .enable(True)
        )
    for row in board.rows:
        built.with_row(dashboard.Row(row.title).id(_id(row.title)))
        for panel in row.panels:
            built.with_panel(_panel(panel, _id(row.title, panel.title)))
    return (
        json.dumps(json.loads(JSONEncoder(sort_keys=True, indent=2).encode(built.build())), indent=2) + "\n"
    )


def _id(*titles: str) -> int:
    """Of the title, so that a link to a panel holds when another one comes before it."""
    return zlib.crc32("/".join(titles).encode()) % 1_000_000


def _panel(panel: Panel, number: int) -> Any:
    built: Any
    if panel.kind == "number":
        built = stat.Panel().reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    elif panel.kind == "bars":
        built = bargauge.Panel().reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    else:
        built = timeseries.Panel().fill_opacity(8).line_width(1.5).show_points(common.VisibilityMode.NEVER)
    built = (
        built.id(number)
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(SOURCE)
        .span(WIDTH[panel.kind])
        .height(HEIGHT[panel.kind])
        .thresholds(_thresholds(panel))
    )
    if panel.kind == "lines" and panel.red_above is not None:
        built = built.thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.LINE)
        )
    for letter, target in zip("ABCDEFGH", panel.targets, strict=False):
        query = (
            prometheus.Dataquery()
            .ref_id(letter)
            .expr(target.expr)
            .legend_format(target.legend or panel.title)
        )
        built = built.with_target(
            query.exemplar(True) if "latency" in target.expr and panel.kind == "lines" else query
        )
    return built


def _thresholds(panel: Panel) -> Any:
    if panel.red_above is not None:
        steps = [(None, "green"), (panel.red_above, "red")]
    elif panel.red_below is not None:
        steps = [(None, "red"), (panel.red_below, "green")]
    else:
        steps = [(None, "blue")]
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def main() -> None:
    """Write a file for each board."""
    for board in BOARDS:
        (HERE / f"{board.uid}.json").write_text(board_json(board))


if __name__ == "__main__":
    main()
