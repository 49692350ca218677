"""Statistics as a picture: events and customers by span, the kinds' shares, and each field's quantiles."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ebbtide.featurestore.times.timestamps import format_date
from ebbtide.model.factory.statistics import QUANTILES, Statistics

FIELDS_MAX = 6
LOW, MIDDLE, HIGH = QUANTILES.index(0.05), QUANTILES.index(0.5), QUANTILES.index(0.95)


def draw_statistics(path: Path, found: Statistics) -> None:
    """Write a PNG. Raises OSError."""
    numbers = [
        (kind, field)
        for kind, of in found.whole.kinds.items()
        for field, figures in of.fields.items()
        if figures.quantiles is not None
    ][:FIELDS_MAX]
    panels = 2 + len(numbers)
    figure = Figure(figsize=(5.2 * 2, 2.6 * ((panels + 1) // 2)), dpi=110, layout="constrained")
    axes: list[Any] = list(figure.subplots((panels + 1) // 2, 2).ravel())
    days = [format_date(span.start_ms) for span in found.spans]
    axes[0].plot(days, [span.events for span in found.spans], marker="o", color="#0b6e99", label="events")
    axes[0].plot(
        days, [span.customers for span in found.spans], marker="o", color="#d98e04", label="customers"
    )
    axes[0].set(title=f"{found.whole.events:,} events by span", ylim=(0, None))
    bottom = [0.0] * len(days)
    for name in found.whole.kinds:
        shares = [span.kinds[name].share for span in found.spans]
        axes[1].bar(days, shares, bottom=bottom, label=name)
        bottom = [a + b for a, b in zip(bottom, shares, strict=True)]
    axes[1].set(title="share of each kind", ylim=(0, 1))
    for axis, (kind, field) in zip(axes[2:], numbers, strict=False):
        known = [
            (day, found_of.quantiles)
            for day, span in zip(days, found.spans, strict=True)
            if (found_of := span.kinds[kind].fields[field]).quantiles is not None
        ]
        x = [day for day, _ in known]
        for at, label in ((LOW, "5 %"), (MIDDLE, "median"), (HIGH, "95 %")):
            axis.plot(x, [quantiles[at] for _, quantiles in known if quantiles], marker="o", label=label)
        axis.set(title=field)
    for axis in axes[:panels]:
        axis.legend(frameon=False, fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(alpha=0.2)
    for axis in axes[panels:]:
        axis.axis("off")
    figure.savefig(path, metadata={"Software": None})
