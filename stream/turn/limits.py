"""The named bounds of a worker."""

from dataclasses import dataclass

from ebbtide.stream.turn.timers import NO_TIMERS, TimerLimits


@dataclass(frozen=True, slots=True)
class Limits:
    """Named bounds of a worker.

    queued_batches_max: fetched and not begun, a partition; beyond it its fetch pauses. queued_bytes_max: the same for
    all partitions together, uncompressed. piece_records_max: batches that had to wait are joined up to so many records,
    at most CUSTOMERS_MAX, since a commit holds no more customers. turn_records_max, turn_partitions_max: a turn, so
    that nobody waits long for the next one and the event loop is never held for long. turns_in_flight: one is judged
    while another is committed. dead_letter_share_max: more bad records than this share are a flood. idle_check_s: how
    long a partition may be idle and not look whether its state is still there; lost at night, it is made again at
    night. timers: when customers are due, and how many of them are taken.
    """

    queued_batches_max: int = 4
    queued_bytes_max: int = 64 << 20
    piece_records_max: int = 1000
    turn_records_max: int = 2048
    turn_partitions_max: int = 128
    turns_in_flight: int = 2
    dead_letter_share_max: float = 0.5
    idle_check_s: float = 5.0
    timers: TimerLimits = NO_TIMERS
