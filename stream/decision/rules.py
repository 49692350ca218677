"""When an episode of a target opens, escalates and ends: the numbers of a policy, checked against each other."""

from itertools import pairwise
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

LOWEST_BAND = "high"
"""What the band is called in which episodes open."""


class Band(BaseModel):
    """A range of risk by its lower end: p >= `enter`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1, max_length=64)
    enter: float = Field(gt=0.0, le=1.0)


class Rules(BaseModel):
    """Probabilities in [0, 1], durations in ms of event time. `bands`: those above the one in which episodes open, by
    rising `enter`. Open once p >= enter; over once p < exit for `dwell_ms`; then nothing opens for `cooldown_ms`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    enter: float = Field(gt=0.0, le=1.0)
    exit: float = Field(ge=0.0, le=1.0)
    dwell_ms: int = Field(default=0, ge=0)
    cooldown_ms: int = Field(default=0, ge=0)
    lowest: str = Field(default=LOWEST_BAND, min_length=1, max_length=64)
    bands: tuple[Band, ...] = Field(default=(), max_length=8)

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.exit > self.enter:
            raise ValueError(f"exit {self.exit} must not be above enter {self.enter}: an episode would flap")
        every = self.every_band
        if any(b.enter <= a.enter for a, b in pairwise(every)):
            said = ", ".join(f"{band.name} {band.enter:g}" for band in every)
            raise ValueError(f"each band must enter above the one before it: {said}")
        if len({band.name for band in every}) < len(every):
            raise ValueError(f"two bands are called alike: {', '.join(band.name for band in every)}")
        return self

    @property
    def every_band(self) -> tuple[Band, ...]:
        """From the lowest up."""
        return (Band(name=self.lowest, enter=self.enter), *self.bands)

    def band(self, index: int) -> Band:
        """By the index that a record keeps; of an episode of a policy with more bands, the highest of this one."""
        return self.every_band[min(index, len(self.bands))]

    def band_of(self, p: np.float32) -> int:
        """Index of the highest band that p reaches; 0 also below `enter`."""
        reached = 0
        for index, band in enumerate(self.bands, 1):
            # p is a float32, so the threshold is compared as one: what is printed as the threshold has reached it.
            if p >= band.enter:
                reached = index
        return reached
