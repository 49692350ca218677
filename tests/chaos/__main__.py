"""`make chaos`: ten minutes of everything that may fail, then every record, alert and letter is compared.

    python -m tests.chaos [--seconds 600] [--events N] [--seed N] [--json FILE] [--keep DIR]

Exit code 0: nothing was lost, nothing was made up, every worker went in good order. 1: something is wrong, and the
output says what. The same seed draws the same faults at the same times, and the same events.
"""

import argparse
import asyncio
import json
import logging
import secrets
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.chaos.report import View, show_outcome
from tests.chaos.run import Run
from tests.chaos.shape import FULL_S, PHASES, shape_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=FULL_S, help="how long faults come (default %(default)s)"
    )
    parser.add_argument("--events", type=int, help="how many events (default: 1,750 for each second)")
    parser.add_argument("--seed", type=int, help="draws faults and events (default: a new one)")
    parser.add_argument("--partitions", type=int, default=8, help="of the input (default %(default)s)")
    parser.add_argument(
        "--at-least-once", action="store_true", help="alerts.exactly_once off: an alert may be there twice"
    )
    parser.add_argument(
        "--phases", nargs="+", choices=PHASES, default=PHASES, metavar="PHASE",
        help=f"what of it: {', '.join(PHASES)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs, models and data there")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else secrets.randbelow(1_000_000)
    shape = shape_of(given.seconds, given.events, seed, given.partitions, at_least_once=given.at_least_once)
    console = Console()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # brokers die: that they are away is no news
    console.print(
        f"seed {seed}: {shape.events:,} events in {shape.seconds:.0f} s, {sum(shape.faults.values())} faults",
        highlight=False,
    )
    with tempfile.TemporaryDirectory(prefix="ebbtide-chaos-") as temporary:
        folder = (given.keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with View(console) as view:
            outcome = asyncio.run(Run(shape, folder, view, given.phases).all())
        (folder / "timeline.txt").write_text("\n".join(outcome.timeline) + "\n")
        show_outcome(console, outcome.figures, outcome.problems)
        if given.keep:
            console.print(f"logs, data and timeline.txt are in {folder}")
        if given.json:
            told = {**outcome.figures, "problems": outcome.problems}
            given.json.write_text(json.dumps(told, indent=2) + "\n")
    console.print(f"seed {seed}", highlight=False)
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
