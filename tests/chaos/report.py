"""What a chaos run looks like: a line that moves, and at the end a table.

It puts into words what it is given. The invariant: what the table says, the JSON says, too.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

LINE_EVERY_S = 5.0

MUST_BE_ZERO = (
    "records_mismatched", "episodes_mismatched", "due_mismatched", "heads_behind", "marks_behind", "marks_moved_back",
    "outbox_left", "keys_unexpected", "risks_of_nobody", "alerts_missing", "alerts_extra", "alerts_other_bytes",
    "alerts_changed", "alerts_not_once", "alerts_mixed_versions", "alerts_other_key", "alerts_out_of_order",
    "beliefs_wrong", "alerts_behind_tombstone", "dead_letters_missing", "dead_letters_wrong",
    "dead_letters_behind_tombstone",
    "scores_missing", "scores_wrong", "scores_extra", "scores_stale", "scores_behind_tombstone", "poison_misjudged",
    "tombstones_missing", "acknowledged_missing", "timers_late", "workers_ended_by_themselves",
    "not_ready_when_quiet",
)  # fmt: skip
OPERATORS_ZERO = (
    "commands_failed", "letters_not_sent_again", "letters_sent_thrice", "letters_made_up", "broken_logs_unnoticed",
    "whole_logs_stopped",
)  # fmt: skip
"""Of the phase of operators, beside what is compared."""
ROWS = {
    "what happened": (
        "events", "alerts", "escalations", "held_out", "dead_letters", "scores", "points_by_timers", "customers",
        "worker_kills", "rebalances", "zombies",
        "broker_kills", "redis_kills", "redis_losses", "redis_flushes", "network_faults", "model_swaps",
        "model_versions_seen",
        "states_made_again", "states_fallen_back", "workers_started", "aborted_runs", "compacted_gaps",
        "compacted_kills", "memories", "rebuild_kills", "dlq_replay_kills", "letters_sent_again", "letters_sent_twice",
        "broken_logs",
    ),
    "must be 0": (*MUST_BE_ZERO, *OPERATORS_ZERO),
    "and besides": (
        "alerts_duplicated", "dead_letters_duplicated", "scores_duplicated", "alerts_uncertain",
        "alerts_ignored_after_loss", "customers_ambiguous", "customers_lost_track_of", "alerts_of_lost_track",
        "episodes_ended_unsaid",
        "recovery_s_max", "recovery_s_median", "pause_s_max", "silent_while_ready_s_max", "mute_s_max",
        "alert_latency_s_p50", "alert_latency_s_p99", "quiet_alert_latency_s_p50", "quiet_alert_latency_s_p99",
        "drained_s", "rss_mb_max", "load_average", "took_s",
    ),
}  # fmt: skip


class View:
    """A context manager. On a terminal one line moves; elsewhere a line comes now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None
        self._told_s = 0.0

    def __enter__(self) -> "View":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, what: str) -> None:
        """Something begins."""
        self._console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {what}", highlight=False)

    def show(
        self,
        seconds: float,
        events: int,
        lag: int,
        workers: int,
        on: Sequence[str],
        counts: Mapping[str, int],
    ) -> None:
        """The run as it stands."""
        line = (
            f"{seconds:4.0f} s  {events:>9,} events  {lag:>8,} behind  {workers} workers"
            f"  {counts.get('worker kills', 0):>3} kills  {counts.get('rebalances', 0):>2} rebalances"
            f"  {counts.get('zombies', 0)} zombies  {counts.get('broker kills', 0)} brokers"
            f"  {counts.get('redis kills', 0)} redis  {'now: ' + ', '.join(on) if on else ''}"
        )
        if self._status is not None:
            self._status.update(Text(line))
        elif time.monotonic() - self._told_s >= LINE_EVERY_S:
            self._told_s = time.monotonic()
            self._console.print(line, highlight=False, soft_wrap=True)


def show_outcome(console: Console, figures: Mapping[str, Any], problems: Sequence[str]) -> None:
    """The table, and what is wrong."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    for title, names in ROWS.items():
        table.add_row(Text(title, style="bold"))
        for name in names:
            if name not in figures:
                continue  # of a phase that was left out
            value = figures[name]
            style = "red" if title == "must be 0" and value != 0 else ""
            table.add_row(
                f"  {name}", Text(f"{value:,}" if isinstance(value, int) else str(value), style=style)
            )
    console.print(table)
    for name in ("recovery_s_max_by_kind", "recovery_alone_s_max_by_kind", "partitions_reopened"):
        said = "  ".join(f"{kind} {value}" for kind, value in figures.get(name, {}).items())
        console.print(f"{name}: {said}", highlight=False, soft_wrap=True)
    tried, took = figures.get("faults_tried", {}), figures.get("faults", {})
    said = "  ".join(f"{kind} {took[kind]}/{n}" for kind, n in tried.items() if took[kind] != n)
    console.print(
        f"faults that took effect, of those tried: {said or 'all'}", highlight=False, soft_wrap=True
    )
    for problem in problems:
        console.print(Text(f"WRONG  {problem}", style="red"), soft_wrap=True)
    console.print(
        Text("nothing was lost", style="bold green") if not problems else Text("FAILED", style="bold red")
    )
