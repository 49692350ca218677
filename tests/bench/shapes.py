"""Seeded logs of other shapes than the public ones: does the gate, and does p by moment, hold on them?

    python -m tests.bench.shapes game|course --customers N --out DIR

game      sessions of clicks a second or two apart, several a day, for weeks; then the player is gone. Horizon 3 days.
course    lessons in weekly rhythm at an hour of one's own, three seasons, half of the learners end with the season.
          Horizon 14 days.

Who is about to leave slows down first, by an amount of his own: there is something to learn, and no more than some.
Writes DIR/<shape>.csv.gz and DIR/<shape>.yaml for `ebbtide train`.
"""

import argparse
import csv
import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DAY_S = 86_400.0
START_S = 1_700_000_000.0
SPECS = {
    "game": """name: game
horizon: 3d
memory: 60d
mapping: {type: event, ts_format: s}
kinds:
  - {name: click, noun: clicks}
  - {name: level, noun: levels}
  - {name: buy, noun: purchases, aggregate: [sum]}
windows: {1h: 6, 24h: 6, 7d: 7, 28d: 7}
half_lives: [6h, 3d]
days_active: [7, 28]
sequence: {length: 32, coalesce: 10s}
silence: {first: 10m, ratio: 2}
eligibility: {min_events: 1, max_silence: 14d}
""",
    "course": """name: course
horizon: 14d
memory: 180d
mapping: {type: event, ts_format: s}
kinds:
  - {name: lesson, noun: lessons}
  - {name: quiz, noun: quizzes, aggregate: [mean, last]}
windows: {7d: 7, 28d: 7, 84d: 12}
half_lives: [7d, 28d]
days_active: [7, 28]
sequence: {length: 32, coalesce: 30m}
silence: {first: 6h, ratio: 1.6}
eligibility: {min_events: 1, max_silence: 60d}
""",
}

Row = tuple[int, str, str, str]


def game(customers: int, rng: np.random.Generator) -> Iterator[Row]:
    for player in range(customers):
        at, ends = START_S + rng.uniform(0, 68) * DAY_S, rng.exponential(12.0) * DAY_S
        born, pace = at, rng.lognormal(-0.7, 0.7) * DAY_S
        slows = rng.uniform(1.0, 4.0)
        while at < born + ends and at < START_S + 70 * DAY_S:
            tired = 1 + slows * max(0.0, (at - born) / max(ends, 1.0) - 0.7)
            moment = at
            for _ in range(1 + rng.geometric(min(1.0, 0.3 * tired))):
                kind = rng.choice(["click", "level", "buy"], p=[0.85, 0.13, 0.02])
                value = f"{rng.lognormal(1, 1):.2f}" if kind == "buy" else ""
                yield int(moment), f"p{player}", str(kind), value
                moment += rng.exponential(1.5) + 0.5
            at = moment + rng.exponential(pace * tired)


def course(customers: int, rng: np.random.Generator) -> Iterator[Row]:
    for learner in range(customers):
        season = int(rng.integers(0, 3))
        weekday, hour, skill = rng.integers(0, 7), rng.normal(19, 3), rng.beta(4, 2)
        week, gone = season * 17, False
        while not gone and week < 52:
            if rng.random() < 0.85:
                at = START_S + (week * 7 + weekday) * DAY_S + (hour + rng.normal(0, 0.7)) * 3_600
                for _ in range(rng.poisson(2) + 1):
                    yield int(at), f"l{learner}", "lesson", ""
                    at += rng.uniform(300, 2_400)
                if rng.random() < 0.5:
                    yield int(at), f"l{learner}", "quiz", f"{min(1.0, max(0.0, rng.normal(skill, 0.15))):.2f}"
            gone = rng.random() < 0.02 + 0.08 * (1 - skill) + (0.5 if week % 17 == 13 else 0.0)
            week += 1 if week % 17 < 14 else 3


def main() -> None:
    """Write a log and its spec."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SPECS)
    parser.add_argument("--customers", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rows = list(
        {"game": game, "course": course}[asked.shape](asked.customers, np.random.default_rng(asked.seed))
    )
    rows.sort()
    asked.out.mkdir(parents=True, exist_ok=True)
    with gzip.open(asked.out / f"{asked.shape}.csv.gz", "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ts", "user_id", "event", "value"])
        writer.writerows(rows)
    (asked.out / f"{asked.shape}.yaml").write_text(SPECS[asked.shape], encoding="utf-8")
    print(f"{len(rows):,} events of {asked.customers:,} customers, seed {asked.seed}")


if __name__ == "__main__":
    main()
