"""The four plots of a model card: is p to be believed, does it rank, how did training go, what does silence say.

Drawn off screen; nothing here computes a figure that the card states.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ebbtide.featurestore.times.durations import format_duration
from ebbtide.model.examples.examples import Examples
from ebbtide.model.fitting.fit import Fit
from ebbtide.model.fitting.recipe import Recipe
from ebbtide.model.judging.horizons import Survival
from ebbtide.model.judging.metrics import Ranking, reliability

PLOTS = ("reliability", "roc", "silence")
COLOURS = {"model": "#0b6e99", "recency": "#b0b0b0", "logistic": "#d98e04", "trees": "#5a8f3c"}
SILENCE_BINS = 12
ROWS_A_POINT_MIN = 20


def draw_training(folder: Path, found: Fit, recipe: Recipe) -> None:
    """Write `training.png`: the loss by epoch on fitted rows, and what cross-fitting found on later ones."""
    figure, axes = _figure("epoch", "log loss", "Training, and what cross-fitting found")
    axes.plot(range(1, len(found.loss) + 1), found.loss, label="fitted rows", color="#b0b0b0")
    axes.plot(range(len(recipe.by_epoch)), recipe.by_epoch, label="later rows", color=COLOURS["model"])
    axes.axvline(recipe.epochs, color="#d98e04", linewidth=1, label="kept")
    _save(figure, axes, folder / "training.png")


def draw_horizons(folder: Path, found: Survival) -> None:
    """Write `horizons.png`: is S to be believed at each horizon, on snapshots."""
    figure, axes = _figure("mean S", "share to whom nothing came", "Reliability by horizon")
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1)
    for n, at in enumerate(found.horizons):
        shade = mpl.colormaps["viridis"](n / max(len(found.horizons) - 1, 1))
        axes.plot(
            at.predicted, at.seen, marker="o", markersize=3, color=shade, label=format_duration(at.horizon_ms)
        )
    _save(figure, axes, folder / "horizons.png")


def draw_plots(folder: Path, test: Examples, scores: Mapping[str, NDArray[np.float64]]) -> None:
    """Write `<plot>.png` for each of PLOTS. `scores`: of all rows, by name; ROC and reliability use snapshots."""
    mpl.use("Agg")
    churned, snapshot = test.churned, test.snapshot
    figure, axes = _figure("mean probability", "share that churned", "Reliability on snapshots")
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1)
    for name, p in scores.items():
        predicted, seen = reliability(p[snapshot], churned[snapshot])
        axes.plot(predicted, seen, marker="o", markersize=3, **_line(name))
    _save(figure, axes, folder / "reliability.png")

    figure, axes = _figure("false positive rate", "true positive rate", "ROC on snapshots")
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1)
    for name, p in scores.items():
        axes.plot(*Ranking(p[snapshot], churned[snapshot]).curve(), **_line(name))
    _save(figure, axes, folder / "roc.png")

    figure, axes = _figure("days of silence", "churn", "Score and outcome by silence, all rows")
    silence = np.maximum(test.silence_days, 1e-2)
    edges = np.unique(np.quantile(silence, np.linspace(0, 1, SILENCE_BINS + 1)))
    group = np.clip(np.searchsorted(edges, silence, side="right") - 1, 0, max(len(edges) - 2, 0))
    kept = [g for g in np.unique(group) if (group == g).sum() >= ROWS_A_POINT_MIN]
    middle = [float(np.median(silence[group == g])) for g in kept]
    axes.plot(middle, [scores["model"][group == g].mean() for g in kept], marker="o", **_line("model"))
    axes.plot(middle, [churned[group == g].mean() for g in kept], "k.--", label="what happened")
    axes.set_xscale("log")
    _save(figure, axes, folder / "silence.png")


def draw_lines(
    path: Path,
    x: tuple[str, Sequence[float]],
    y: str,
    lines: Mapping[str, Sequence[float]],
    marks: Sequence[tuple[str, float]],
) -> None:
    """Write one plot of lines over a common axis `x` (its name and values), with named places on it marked."""
    mpl.use("Agg")
    figure, axes = _figure(x[0], y, f"{y} by {x[0]}")
    for name, values in lines.items():
        axes.plot(x[1], values, marker="o", markersize=3, **_line(name))
    for n, (name, at) in enumerate(marks):
        axes.axvline(at, color=f"C{n + 4}", linewidth=1, linestyle="--", label=name)
    _save(figure, axes, path)


def _figure(x: str, y: str, title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2, 3.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.2)
    return figure, axes


def _line(name: str) -> dict[str, Any]:
    return {"label": name, "color": COLOURS.get(name), "linewidth": 2 if name == "model" else 1.2}


def _save(figure: Figure, axes: Any, path: Path) -> None:
    axes.legend(frameon=False, fontsize=8)
    # No date and no software version inside: the same model gives the same bytes.
    figure.savefig(path, metadata={"Software": None})
