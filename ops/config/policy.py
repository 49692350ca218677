"""The policy as settings: in the settings' own group `policy`, or in a YAML file beside the spec that the group names.

    policy: policy.yaml                    # of the settings; the same as policy: {file: policy.yaml}

    exit: 0.3                              # policy.yaml; enter and exit are the model's own unless given
    dwell: 2d
    cooldown: 7d
    bands: {critical: 0.85}                # above the one in which episodes open, which is called `high`
    alerts_per_minute_max: 60
    holdout: 0.05
    targets: {purchase: {dwell: 5d}}       # what is other for one target of the spec

What the settings say beside `file`, or variables as EBBTIDE_POLICY__ENTER do, wins over the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DurationMs, format_duration
from ebbtide.ops.errors import SettingsError
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.decision.holdout import Holdout
from ebbtide.stream.decision.rules import LOWEST_BAND, Band, Rules

DURATIONS = ("dwell", "cooldown")
WEEK_MS = 7 * 86_400_000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)


class TargetPolicySettings(_Part):
    """What is other for one target; None: as for all."""

    enter: float | None = Field(default=None, gt=0, le=1)
    exit: float | None = Field(default=None, ge=0, le=1)
    dwell_ms: DurationMs | None = Field(default=None, alias="dwell")
    cooldown_ms: DurationMs | None = Field(default=None, alias="cooldown")
    bands: dict[str, float] | None = None


class PolicySettings(_Part):
    """When episodes open and close, and who is told. `enter` and `exit` come from the model's manifest unless given
    here. `band`: what the band is called in which they open; `bands`: those above, by the p at which each begins.
    `alerts_per_minute_max`: openings in a minute of event time, over all partitions. `holdout`: the share of customers,
    by hash, who are decided about and not alerted; another `holdout_salt` draws others. `targets`: what is other for
    one target of the spec."""

    file: Path | None = None
    enter: float | None = Field(default=None, gt=0, le=1)
    exit: float | None = Field(default=None, ge=0, le=1)
    dwell_ms: DurationMs = Field(default=0, alias="dwell")
    cooldown_ms: DurationMs = Field(default=WEEK_MS, alias="cooldown")
    band: str = LOWEST_BAND
    bands: dict[str, float] = Field(default_factory=dict)
    alerts_per_minute_max: float | None = Field(default=None, gt=0)
    holdout: float = Field(default=0.0, ge=0, lt=1)
    holdout_salt: str = ""
    targets: dict[str, TargetPolicySettings] = Field(default_factory=dict)

    def rules(self, enter: float, exit: float, target: str = "") -> Rules:  # noqa: A002  # the setting's name
        """Of one target, where the model chose `enter` and `exit`. Raises ValueError where they do not fit together."""
        own = self.targets.get(target, TargetPolicySettings())
        said = next((value for value in (own.enter, self.enter) if value is not None), enter)
        left = next((value for value in (own.exit, self.exit) if value is not None), min(exit, said))
        bands = self.bands if own.bands is None else own.bands
        return Rules(
            enter=said,
            exit=left,
            dwell_ms=self.dwell_ms if own.dwell_ms is None else own.dwell_ms,
            cooldown_ms=self.cooldown_ms if own.cooldown_ms is None else own.cooldown_ms,
            lowest=self.band,
            bands=tuple(
                Band(name=name, enter=lowest)
                for name, lowest in sorted(bands.items(), key=lambda pair: pair[1])
            ),
        )

    def policy(self, rules: Sequence[Rules]) -> EpisodePolicy:
        """The whole, of the rules of every target of the spec."""
        return EpisodePolicy(tuple(rules), self.alerts_per_minute_max, self.held_out)

    @property
    def held_out(self) -> Holdout:
        """Who is decided about and not alerted."""
        return Holdout(self.holdout, self.holdout_salt)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Every band that an alert may name."""
        every = [self.band, *self.bands]
        for own in self.targets.values():
            every += own.bands or {}
        return tuple(dict.fromkeys(every))

    def check_spec(self, spec: Spec) -> None:
        """Raises SettingsError where policy and spec do not fit each other."""
        unknown = [name for name in self.targets if name not in spec.target_names]
        if unknown:
            raise SettingsError(
                f"policy.targets names {', '.join(unknown)}: the spec has {', '.join(spec.target_names)}",
                hint="name targets as the spec does",
            )
        cooldowns = [("policy.cooldown", self.cooldown_ms)]
        cooldowns += [
            (f"policy.targets.{name}.cooldown", own.cooldown_ms)
            for name, own in self.targets.items()
            if own.cooldown_ms is not None
        ]
        for name, cooldown_ms in cooldowns:
            if cooldown_ms > spec.memory_ms:
                raise SettingsError(
                    f"{name} {format_duration(cooldown_ms)} is longer than the spec's memory"
                    f" {format_duration(spec.memory_ms)}: a record would forget it",
                    hint="shorten policy.cooldown or lengthen memory",
                )

    def shown(self) -> dict[str, Any]:
        """As plain data for people: durations in words."""
        data = self.model_dump(mode="json", by_alias=True)
        for part in (data, *data["targets"].values()):
            part |= {name: format_duration(part[name]) for name in DURATIONS if part[name] is not None}
        return data


def over(base: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """`said`, over what a file says: a group of both is merged."""
    merged = dict(base)
    for name, value in said.items():
        below = merged.get(name)
        merged[name] = over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
