"""Redis: will it keep what is stored, has it room, does it answer in time, and is its time ours?"""

from collections.abc import Iterator, Mapping
from typing import Any

from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.doctor.finding import Finding, error, ok, warning
from ebbtide.ops.state.room import room_of
from ebbtide.stream.clock import Clock

ASKED = 20
ROUND_TRIP_MS_MAX = 5.0
"""A turn makes two to four round trips, and 100 ms are promised from event to alert."""
SKEW_MS_MAX = 2_000
"""NTP keeps milliseconds; seconds mean that nobody sets one of the two clocks."""


async def examine_redis(store: RedisStore, clock: Clock) -> list[Finding]:
    """What its servers say of themselves. The store is started: version, eviction and mode are right already."""
    found: list[Finding] = []
    for where, info in await store.infos():
        check = f"redis {where}"
        problems = [*_memory(check, info), *_persistence(check, info), *_clock(check, info, clock.now_ms())]
        found += problems or [ok(check, f"version {info.get('redis_version')}, {room_of(info).words()}")]
    return [*found, await _latency(store, clock)]


def _memory(check: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    room = room_of(info)
    if room.max_bytes is None:
        yield warning(
            check, f"{room.words()}: it grows until the system ends it",
            "set maxmemory, at most three quarters of what the machine has: saving needs some, too",
        )  # fmt: skip
    elif room.is_full:
        yield error(
            check, f"{room.words()}: it refuses writes at 100 %, and every partition stops",
            "raise maxmemory, or take fewer customers or a shorter memory",
        )  # fmt: skip
    elif room.is_high:
        yield warning(
            check, room.words(), "raise maxmemory: from 95 % on little is left, at 100 % writes are refused"
        )


def _persistence(check: str, info: Mapping[str, Any]) -> Iterator[Finding]:
    appends = bool(info.get("aof_enabled"))
    if info.get("aof_last_write_status", "ok") != "ok" or info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield error(
            check, "its last write to disk failed", "look at its log, and at the disk: full, or broken?"
        )
    elif not appends:
        yield warning(
            check, "appendonly is off: a restart loses what came since the last snapshot, if there is any",
            "set `appendonly yes`; without it a state is made again from the log, for as long as that reaches back",
        )  # fmt: skip
    if info.get("loading"):
        yield error(check, "it is still loading its data", "wait for it")
    if info.get("role", "master") != "master":
        yield error(
            check, f"it is a {info['role']}", "let redis.url name the master, or Sentinels that know it"
        )


def _clock(check: str, info: Mapping[str, Any], now_ms: int) -> Iterator[Finding]:
    told_us = info.get("server_time_usec")
    skew_ms = abs(int(told_us) // 1000 - now_ms) if told_us is not None else 0
    if skew_ms > SKEW_MS_MAX:
        yield warning(
            check,
            f"its clock and ours are {skew_ms / 1000:,.0f} s apart",
            "set both by NTP: one of them is wrong",
        )


async def _latency(store: RedisStore, clock: Clock) -> Finding:
    seconds = []
    for _ in range(ASKED):
        began_s = clock.monotonic_s()
        await store.checkpoint(0)
        seconds.append(clock.monotonic_s() - began_s)
    median_ms = sorted(seconds)[ASKED // 2] * 1000
    said = f"a round trip takes {median_ms:.2f} ms (median of {ASKED})"
    if median_ms > ROUND_TRIP_MS_MAX:
        return warning(
            "redis latency", said, "put workers and Redis into one zone; look for slow commands of others"
        )
    return ok("redis latency", said)
