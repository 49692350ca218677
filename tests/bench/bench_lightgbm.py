"""LightGBM on features of its own, beside a model's scored rows: is a model level with what a data scientist would do?

    python -m tests.bench.bench_lightgbm --out DIR … [--log NAME …] [--trials 50] [--snapshots 8] [--json FILE]

DIR: of `tests.bench.bench_model`, whose rows say who is judged, what followed and what the model said; several of them
(before and after a change) are put beside one and the same LightGBM. It is no dependency of the project: `pip install
lightgbm` into an environment of your own, or `--target` a folder on PYTHONPATH.

Its features know nothing of ours: they are made of the raw file by the plainest means (recency, tenure, counts, sums
and active days in windows from 1 day to 2 years by kind of event, gaps, ratios). It learns from snapshots whose horizon
is over at `labels_until`, chooses its parameters by a random search that validates on the last of them, and is fitted
again on all. It counts only where it reaches the references of the data's README within .003.
"""

import argparse
import csv
import gzip
import json
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ebbtide.featurestore.times.durations import DAY_MS, parse_duration
from ebbtide.featurestore.times.timestamps import iso_ms
from ebbtide.model.judging.evaluate import evaluate
from tests.bench.bench_model import DATA, LOGS

F8 = NDArray[np.float64]
WINDOWS_DAYS = (1, 3, 7, 14, 28, 56, 84, 180, 365, 730)
COLUMNS = {
    "cdnow": ("date", "event", "amount"),
    "complete_journey": ("ts", "event", "amount"),
    "numpy_git": ("ts", "event", None),
}
CONTACTS = {"campaign_mailed", "coupon_redeemed"}
SILENCE_MAX_DAYS = {"cdnow": None, "complete_journey": 84, "numpy_git": 180}


class Raw:
    """A log as arrays by customer, in order of time. Coupons are dated at their day's end."""

    def __init__(self, name: str, data: Path) -> None:
        when, kind, value = COLUMNS[name]
        with gzip.open(data / name / "events.csv.gz", "rt", newline="") as file:
            rows = list(csv.DictReader(file))
        self.customers = sorted({row["user_id"] for row in rows})
        index = {customer: i for i, customer in enumerate(self.customers)}
        customer = np.array([index[row["user_id"]] for row in rows])
        time = np.array([_ms(row[when]) for row in rows])
        kinds = np.array([row[kind] for row in rows])
        time = np.where(kinds == "coupon_redeemed", time // DAY_MS * DAY_MS + DAY_MS - 1, time)
        amount = np.array([float(row[value] or 0) for row in rows]) if value else np.zeros(len(rows))
        order = np.lexsort((time, customer))
        self.customer, self.time, self.kind, self.amount = (
            customer[order],
            time[order],
            kinds[order],
            amount[order],
        )
        self.active = ~np.isin(self.kind, list(CONTACTS))
        self.kinds = sorted(set(self.kind.tolist()))

    def features(self, as_of: int) -> F8:
        """float64[m, F] of all customers, from events up to and including `as_of`; NaN where nothing is known."""
        m, before = len(self.customers), self.time <= as_of
        known = before & self.active
        last, first = np.full(m, np.nan), np.full(m, np.nan)
        np.fmax.at(last, self.customer[known], self.time[known].astype(float))
        np.fmin.at(first, self.customer[known], self.time[known].astype(float))
        silence, tenure = (as_of - last) / DAY_MS, (as_of - first) / DAY_MS
        count = np.bincount(self.customer[known], minlength=m).astype(float)
        usual = (tenure - silence) / np.maximum(count - 1, 1)
        columns = [silence, tenure, count, usual, *self._gaps(known, m, silence)]
        age = (as_of - self.time) / DAY_MS
        for window in WINDOWS_DAYS:
            inside = before & (age < window)
            for kind in self.kinds:
                chosen = inside & (self.kind == kind)
                columns.append(np.bincount(self.customer[chosen], minlength=m).astype(float))
                if self.amount.any():
                    columns.append(np.bincount(self.customer[chosen], self.amount[chosen], minlength=m))
            chosen = inside & self.active
            days = np.unique(np.stack([self.customer[chosen], self.time[chosen] // DAY_MS]), axis=1)
            columns.append(np.bincount(days[0], minlength=m).astype(float))
        columns.append(silence / np.maximum(usual, 1e-3))
        total = np.bincount(self.customer[known], self.amount[known], minlength=m)
        columns += [total, total / np.maximum(count, 1)]
        return np.stack(columns, axis=1)

    def _gaps(self, known: NDArray[np.bool_], m: int, silence: F8) -> list[F8]:
        """Mean, deviation, median and longest of the gaps in days, and where the silence stands among them."""
        customer, time = self.customer[known], self.time[known]
        same = customer[1:] == customer[:-1]
        gaps, whose = (np.diff(time) / DAY_MS)[same], customer[1:][same]
        n = np.bincount(whose, minlength=m)
        mean = np.bincount(whose, gaps, minlength=m) / np.maximum(n, 1)
        spread = np.sqrt(np.maximum(np.bincount(whose, gaps**2, minlength=m) / np.maximum(n, 1) - mean**2, 0))
        longest = np.zeros(m)
        np.maximum.at(longest, whose, gaps)
        above = np.bincount(whose, gaps > silence[whose], minlength=m) / np.maximum(n, 1)
        order = np.lexsort((gaps, whose))
        begins = np.searchsorted(whose[order], np.arange(m))
        middle = np.minimum(begins + n // 2, max(len(gaps) - 1, 0))
        median = np.where(n > 0, gaps[order][middle] if len(gaps) else 0.0, np.nan)
        return [np.where(n > 0, each, np.nan) for each in (mean, spread, longest, above)] + [median]

    def returned(self, as_of: int, horizon_ms: int) -> NDArray[np.bool_]:
        inside = self.active & (self.time > as_of) & (self.time <= as_of + horizon_ms)
        return np.bincount(self.customer[inside], minlength=len(self.customers)) > 0


def _ms(text: str) -> int:
    if len(text) == 8:
        return int(datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC).timestamp() * 1000)
    return int(text) * 1000


def eligible(features: F8, name: str) -> NDArray[np.bool_]:
    most = SILENCE_MAX_DAYS[name]
    silence = features[:, 0]
    return np.isfinite(silence) & ((silence <= most) if most else True)


def compare(title: str, outs: list[Path], trials: int, snapshots: int, data: Path) -> dict[str, Any]:
    """LightGBM beside each folder's model on the rows of its snapshots, by folder and date."""
    make = import_module("lightgbm").LGBMClassifier  # no dependency: only this command asks for it
    log, began = LOGS[title], time.perf_counter()
    raw, horizon_ms = Raw(log.name, data), parse_duration(log.horizon)
    end = iso_ms(log.labels_until) - horizon_ms
    first = int(raw.time.min())
    step = min((end - first) // (snapshots + 1), 2 * horizon_ms)
    dates = [end - 1 - i * step for i in range(snapshots)][::-1]
    parts = []
    for date in dates:
        x = raw.features(date)
        rows = eligible(x, log.name)
        parts.append((x[rows], ~raw.returned(date, horizon_ms)[rows]))
    chosen = search(make, parts, trials, horizon_ms, step)
    model = make(**chosen, n_jobs=1, verbose=-1).fit(
        np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
    )
    found: dict[str, Any] = {"parameters": chosen, "seconds": time.perf_counter() - began}
    return found | {out.name: judged(title, out, raw, model) for out in outs}


def judged(title: str, out: Path, raw: Raw, model: Any) -> dict[str, Any]:
    """The folder's model and LightGBM on the same rows, by date."""
    table = pq.read_table(out / f"{title}.parquet")
    snapshot = np.array(table["cause"].to_pylist()) == "snapshot"
    as_of = table["as_of"].to_numpy().astype("datetime64[ms]").astype(np.int64)
    index = {customer: i for i, customer in enumerate(raw.customers)}
    who = np.array([index[customer] for customer in table["customer"].to_pylist()])
    churned = np.array(table["label"].to_pylist()) == "churned"
    found: dict[str, Any] = {}
    for date in np.unique(as_of[snapshot]).tolist():
        rows = snapshot & (as_of == date)
        p = model.predict_proba(raw.features(date)[who[rows]])[:, 1]
        scores = {"model": table["probability"].to_numpy()[rows].astype(np.float64), "lightgbm": p}
        day = str(np.datetime64(date, "ms").astype("datetime64[D]"))
        found[day] = evaluate(scores, churned[rows], who[rows], bootstrap=1_000).as_json()
    return found


def search(
    make: Any, parts: list[tuple[F8, NDArray[np.bool_]]], trials: int, horizon_ms: int, step: int
) -> dict[str, Any]:
    """The parameters of the lowest log loss on the last snapshot, learned from those whose horizon was over by then."""
    gap = -(-horizon_ms // step)
    fit = parts[: max(len(parts) - gap, 1)]
    x, y = np.concatenate([x for x, _ in fit]), np.concatenate([y for _, y in fit])
    later, outcome = parts[-1]
    rng, best = np.random.default_rng(0), (np.inf, {})  # type: tuple[Any, tuple[float, dict[str, Any]]]
    for _ in range(trials):
        asked = {
            "n_estimators": int(rng.integers(40, 400)), "learning_rate": float(10 ** rng.uniform(-2, -0.7)),
            "num_leaves": int(rng.integers(3, 48)), "min_child_samples": int(rng.integers(5, 200)),
            "reg_lambda": float(10 ** rng.uniform(-2, 2)), "colsample_bytree": float(rng.uniform(0.3, 1)),
            "subsample": float(rng.uniform(0.5, 1)), "subsample_freq": 1, "random_state": 0,
        }  # fmt: skip
        p = np.clip(make(**asked, n_jobs=1, verbose=-1).fit(x, y).predict_proba(later)[:, 1], 1e-6, 1 - 1e-6)
        loss = float(-np.log(np.where(outcome, p, 1 - p)).mean())
        best = min(best, (loss, asked), key=lambda each: each[0])
    return best[1]


def main() -> None:
    """Compare what is asked for and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, nargs="+", required=True, help="of tests.bench.bench_model")
    parser.add_argument("--log", nargs="*", choices=LOGS, default=list(LOGS))
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--snapshots", type=int, default=8)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = {}
    for title in asked.log:
        found[title] = compare(title, asked.out, asked.trials, asked.snapshots, asked.data)
        print(f"{title}: {asked.trials} trials, {found[title]['seconds']:.0f} s")
        for name, day, each in (
            (out.name, *of) for out in asked.out for of in found[title][out.name].items()
        ):
            for metric in ("auroc", "log_loss"):
                low, high = each[f"{metric}_difference"]["lightgbm"]
                model, theirs = each[metric]["model"], each[metric]["lightgbm"]
                print(
                    f"{name}: {title} {day} n={each['rows']:,} {metric}: model {model:.4f}, LightGBM {theirs:.4f}, "
                    f"difference {model - theirs:+.4f} ({low:+.4f} to {high:+.4f})",
                    flush=True,
                )
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
