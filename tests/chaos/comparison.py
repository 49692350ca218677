"""What is to be compared of a topic, and by which rules."""

from collections.abc import Sequence
from dataclasses import dataclass

from ebbtide.ops.config.settings import Settings
from tests.chaos.feed import Acknowledged
from tests.chaos.losses import FellBack


@dataclass(frozen=True)
class Comparison:
    """`settings`: the direct ways. `acknowledged` None: the log has lost some of it, and the state alone is compared.
    `remade`: what may have been decided again. `due_by_ms`: timers have taken who was due by then, ms UTC; None: they
    are off. `quiet_from_ms`: no event acknowledged from then on, ms UTC, met a fault. `compacted`: what was
    superseded may be gone."""

    name: str
    settings: Settings
    acknowledged: Acknowledged | None = None
    remade: Sequence[FellBack] = ()
    due_by_ms: int | None = None
    quiet_from_ms: int = 0
    compacted: bool = False
