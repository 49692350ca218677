"""What a model is worth on the three public logs, at stated dates: trained up to each date, judged offline after it.

    python -m tests.bench.bench_model [--log NAME …] [--out DIR] [--json FILE] [-- options of `ebbtide train`]

Each log's model knows nothing beyond its `labels_until`; `ebbtide evaluate` then judges it at the dates that follow, by
moment and on snapshots. `--tree` trains another checkout (an older release) and judges its model by this one's lines,
so that before and after are on the same rows. DIR keeps the models, the reports and every scored row as Parquet, for
`tests.bench.bench_lightgbm`.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.bench_train import MIB, ROOT, measured

DATA = ROOT.parent / "shared" / "data"
SPECS = ROOT / "ops" / "specs"
METRICS = ("auroc", "auprc", "log_loss", "ece")


class Log(NamedTuple):
    """A log of `DATA`, the horizon, until when a training may know it, and the dates that are judged."""

    name: str
    horizon: str
    labels_until: str
    dates: str


LOGS = {
    "cdnow": Log("cdnow", "90d", "1997-12-01", "1997-12-31,1998-03-31"),
    "complete_journey_14d": Log("complete_journey", "14d", "2017-10-01", "2017-10-01"),
    "complete_journey": Log("complete_journey", "28d", "2017-10-01", "2017-10-01"),
    "complete_journey_56d": Log("complete_journey", "56d", "2017-10-01", "2017-10-01"),
    "numpy_git": Log("numpy_git", "90d", "2024-01-01", "2024-01-01"),
    "numpy_git_180d": Log("numpy_git", "180d", "2024-01-01", "2024-01-01"),
}


def run(title: str, out: Path, tree: Path, data: Path, options: list[str]) -> dict[str, Any]:
    """Train and judge one log. Returns its figures."""
    log = LOGS[title]
    events, models = data / log.name / "events.csv.gz", out / "models"
    trained, judged = out / f"{title}.train.json", out / f"{title}.json"
    command = [sys.executable, "-m", "ebbtide.ops.cli"]
    arguments = [
        "train", "--events", str(events), "--spec", str(SPECS / f"{log.name}.yaml"), "--out", str(models),
        "--name", title, "--horizon", log.horizon, "--labels-until", log.labels_until, "--json", str(trained), *options,
    ]  # fmt: skip
    seconds, peak = measured([*command, *arguments], tree)
    judge(title, models / title, out, data)
    found: dict[str, Any] = json.loads(judged.read_text())
    found["trained"] = json.loads(trained.read_text())
    return {**found, "seconds": seconds, "peak_rss_bytes": peak, "load": os.getloadavg()[0]}


def judge(title: str, model: Path, out: Path, data: Path = DATA) -> None:
    """`ebbtide evaluate` of a published model at its log's dates, with its rows beside."""
    log = LOGS[title]
    measured(
        [
            sys.executable, "-m", "ebbtide.ops.cli", "evaluate", "--events",
            str(data / log.name / "events.csv.gz"), "--model", str(model), "--snapshot", log.dates,
            "--rows", str(out / f"{title}.parquet"), "--json", str(out / f"{title}.json"),
        ],
        ROOT,
    )  # fmt: skip


def table(title: str, found: dict[str, Any]) -> str:
    """Markdown: by moment, then by date."""
    names = list(found["auroc"])
    head = [
        "where",
        "rows",
        "churned",
        "predicted / true",
        *(f"{name}: AUROC, AUPRC, log loss, ECE" for name in names),
    ]
    lines = [f"\n### {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    parts = [(part["moment"], part) for part in found["moments"]]
    parts += [(date[:10], part) for date, part in found["snapshots"].items()]
    for name, part in parts:
        if not part.get("auroc"):
            continue
        ratio = part.get("ratio")
        cells = [
            ", ".join("-" if part[m][n] is None else f"{part[m][n]:.3f}" for m in METRICS) for n in names
        ]
        shown = "" if ratio is None else f"{ratio:.2f}"
        lines.append(
            f"| {name} | {part['rows']:,} | {part['base_rate']:.1%} | {shown} | {' | '.join(cells)} |"
        )
    given, asked = found["alerted"], found["alert_rate"]
    if given is not None:
        lines += ["", f"Alerts: {given:.1%} of the customers, {asked:.1%} asked for."]
    if "trained" in found:
        trained = found["trained"]
        lines.append(
            f"Training: {found['seconds']:.0f} s, {found['peak_rss_bytes'] / MIB:,.0f} MiB, load {found['load']:.1f}; "
            f"on its own test slice {trained['alerted_in_test'] or 0:.1%} alerted; forest "
            f"{trained.get('forest_share', 0):.0%}, {trained['epochs']} epochs; the sequence adds "
            f"{trained.get('sequence_adds')}."
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", nargs="*", choices=LOGS, default=list(LOGS))
    parser.add_argument("--out", type=Path, help="keep models, reports and rows here")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tree", type=Path, default=ROOT, help="train this checkout")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("options", nargs="*", help="options of `ebbtide train`, after --")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ebbtide-bench-") as folder:
        out = asked.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        found = {title: run(title, out, asked.tree, asked.data, asked.options) for title in asked.log}
    print("\n".join(table(title, each) for title, each in found.items()))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
