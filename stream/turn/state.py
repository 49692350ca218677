"""What state a partition of ours is in. Metrics, `/readyz`, logs and tests read this; the words are made here alone.

Opening ─▶ Rebuilding ─▶ Live ─▶ Draining ─▶ Done
   ▲           │          │
   └─ Retrying ◀──────────┘      a server away, a fence, a gap: opened again after a while
                   Stopped       a fault that only a person can mend: this partition, and no other
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Opening:
    """Its checkpoint is being read, and what an earlier owner left is being sent."""


@dataclass(frozen=True, slots=True)
class Rebuilding:
    """Its state is made again from the log: it is at offset `position`, and what lies below `until` was sent before."""

    position: int
    until: int


@dataclass(frozen=True, slots=True)
class Live:
    """It is open and up to date."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """It failed `attempts` times in a row, last by the error class `reason`; it stays so until a commit succeeds."""

    reason: str
    detail: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """It does nothing more until a person has looked; it stays ours, since another owner would do the same."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Draining:
    """It takes nothing more and finishes what it has."""


@dataclass(frozen=True, slots=True)
class Done:
    """It has ended, with nothing left in hand."""


State = Opening | Rebuilding | Live | Retrying | Stopped | Draining | Done


def named(state: State) -> tuple[str, str]:
    """A state's name, and the error class that a partition is in it for, or nothing: as metrics label it."""
    return type(state).__name__.lower(), state.reason if isinstance(state, Retrying | Stopped) else ""


def describe(state: State) -> str:
    """Why a partition in this state is not ready, in words; empty when it is."""
    match state:
        case Opening():
            return "it is being opened"
        case Rebuilding(position, until):
            return f"its state is being made again from the log: at offset {position:,} of {until:,}"
        case Retrying(reason, detail, _):
            return f"{reason}: {detail}"
        case Stopped(_, detail):
            return f"it has stopped: {detail}"
        case _:
            return ""
