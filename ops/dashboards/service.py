"""The service: does it keep its promises, where does the time go, what do its servers do."""

from ebbtide.ops.alerting.objectives import LATENCY, LATENCY_GOOD_S, LOSS
from ebbtide.ops.dashboards.panels import Board, Panel, Row, Target, mean, metric, quantile, rate

GOOD_S = float(LATENCY_GOOD_S)

SERVICE = Board(
    "ebbtide-service",
    "Ebbtide: service",
    "Objectives, partitions, the scorer, Redis and Kafka.",
    (
        Row(
            "Promises",
            (
                Panel(
                    "Alerts in time",
                    f"Share of alerts acknowledged within {GOOD_S:g} s of their record's arrival. The"
                    f" objective is {LATENCY.share:.0%}.",
                    "percentunit",
                    (
                        Target(
                            f"sum({rate('ebbtide_alert_latency_seconds_bucket', le=LATENCY_GOOD_S)})"
                            f" / sum({rate('ebbtide_alert_latency_seconds_count')})"
                        ),
                    ),
                    kind="number",
                    red_below=LATENCY.share,
                ),
                Panel(
                    "Records decided",
                    f"Share of records that are no dead letters. The objective is {LOSS.share:.1%}.",
                    "percentunit",
                    (
                        Target(
                            f"1 - sum({rate('ebbtide_dead_letters_total')}) / sum({rate('ebbtide_records_total')})"
                        ),
                    ),
                    kind="number",
                    red_below=LOSS.share,
                ),
                Panel(
                    "Workers ready",
                    "Workers that are ready, of those that are scraped.",
                    "short",
                    (
                        Target(f"sum({metric('ebbtide_ready')})", "ready"),
                        Target(f"count({metric('ebbtide_ready')})", "all"),
                    ),
                    kind="number",
                ),
                Panel(
                    "Latency of alerts",
                    "From Kafka's timestamp of a record to its acknowledged alert.",
                    "s",
                    (
                        quantile(0.5, "ebbtide_alert_latency_seconds"),
                        quantile(0.99, "ebbtide_alert_latency_seconds"),
                    ),
                    red_above=GOOD_S,
                ),
                Panel(
                    "Latency of turns",
                    "From the oldest record of a turn to its last acknowledgement, alerts or not.",
                    "s",
                    (
                        quantile(0.5, "ebbtide_event_to_emit_seconds"),
                        quantile(0.99, "ebbtide_event_to_emit_seconds"),
                    ),
                    red_above=GOOD_S,
                ),
                Panel(
                    "Dead letters",
                    "Bad records a second, by reason; none in a good hour.",
                    "cps",
                    (
                        Target(
                            f"sum by (reason) ({rate('ebbtide_dead_letters_total')}) > 0"
                            f" or sum({rate('ebbtide_dead_letters_total')})",
                            "{{reason}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Pipeline",
            (
                Panel(
                    "Throughput",
                    "Records read, events folded, points decided a second.",
                    "cps",
                    (
                        Target(f"sum({rate('ebbtide_records_total')})", "records"),
                        Target(f"sum({rate('ebbtide_events_total')})", "events"),
                        Target(f"sum({rate('ebbtide_decision_points_total')})", "points"),
                    ),
                ),
                Panel(
                    "Lag",
                    "Age of the oldest record that is not committed, as of the scrape: the worst partition.",
                    "s",
                    (
                        Target(
                            f"max by (partition) ({metric('ebbtide_partition_lag_seconds')})",
                            "partition {{partition}}",
                        ),
                    ),
                    red_above=300.0,
                ),
                Panel(
                    "Standing still",
                    "Seconds since the last progress of a partition that holds records.",
                    "s",
                    (
                        Target(
                            f"max by (partition) ({metric('ebbtide_partition_stalled_seconds')})",
                            "partition {{partition}}",
                        ),
                    ),
                    red_above=300.0,
                ),
                Panel(
                    "States of partitions",
                    "How many partitions are in which state.",
                    "short",
                    (Target(f"sum by (state) ({metric('ebbtide_partition_state')})", "{{state}}"),),
                ),
                Panel(
                    "Stages of a turn",
                    "Seconds a second that turns spend in each stage; they overlap.",
                    "s",
                    (Target(f"sum by (stage) ({rate('ebbtide_stage_seconds_sum')})", "{{stage}}"),),
                ),
                Panel(
                    "Reopened",
                    "Partitions that went back to their checkpoints, a minute, by reason.",
                    "cpm",
                    (
                        Target(
                            f"60 * sum by (reason) ({rate('ebbtide_partition_reopened_total')})", "{{reason}}"
                        ),
                    ),
                ),
                Panel(
                    "Odd events",
                    "Late, repeated, misplaced, behind their customer's last decision: events a second.",
                    "cps",
                    (
                        Target(f"sum({rate('ebbtide_events_late_total')})", "late"),
                        Target(f"sum({rate('ebbtide_events_duplicate_total')})", "repeated"),
                        Target(f"sum({rate('ebbtide_events_misplaced_total')})", "misplaced"),
                        Target(f"sum({rate('ebbtide_events_behind_watermark_total')})", "behind"),
                    ),
                ),
                Panel(
                    "Process",
                    "Processor seconds a second of each worker; 1 is one core.",
                    "short",
                    (Target(rate("process_cpu_seconds_total"), "{{instance}}"),),
                ),
                Panel(
                    "Memory",
                    "Resident bytes of each worker.",
                    "bytes",
                    (Target(metric("process_resident_memory_bytes"), "{{instance}}"),),
                ),
            ),
        ),
        Row(
            "Silence",
            (
                Panel(
                    "Silences taken",
                    "Customers a second to whom time brought something: a decision, or the end of their record.",
                    "cps",
                    (
                        Target(f"sum({rate('ebbtide_timer_customers_total')})", "taken"),
                        Target(f"sum({rate('ebbtide_customers_expired_total')})", "expired"),
                    ),
                ),
                Panel(
                    "Timers late",
                    "How long somebody has been due beyond lateness_max: the worst worker. After a downtime it falls.",
                    "s",
                    (Target(f"max({metric('ebbtide_timer_lateness_seconds')})"),),
                ),
                Panel(
                    "Timers held",
                    "Partitions that bring far less than is usual, and whether the whole topic is quiet (1): nobody's"
                    " silence is taken there.",
                    "short",
                    (
                        Target(f"sum({metric('ebbtide_source_low_partitions')})", "low partitions"),
                        Target(f"min({metric('ebbtide_timers_held')})", "quiet topic"),
                    ),
                    red_above=1.0,
                ),
            ),
        ),
        Row(
            "Batcher",
            (
                Panel(
                    "Dispatches",
                    "Calls of the model a second, by why they went.",
                    "cps",
                    (Target(f"sum by (reason) ({rate('ebbtide_dispatches_total')})", "{{reason}}"),),
                ),
                Panel(
                    "Busy",
                    "Share of the time that the scorer computes; near 1 it is the limit.",
                    "percentunit",
                    (Target(f"sum by (instance) ({rate('ebbtide_dispatch_seconds_sum')})", "{{instance}}"),),
                    red_above=0.9,
                ),
                Panel(
                    "Rows a dispatch",
                    "Rows scored in one call, and the share of rows that was padding.",
                    "short",
                    (
                        Target(
                            f"sum({rate('ebbtide_dispatch_rows_sum')}) / sum({rate('ebbtide_dispatch_rows_count')})",
                            "rows",
                        ),
                        Target(
                            f"sum({rate('ebbtide_dispatch_padding_rows_total')})"
                            f" / sum({rate('ebbtide_dispatches_total')})",
                            "padding",
                        ),
                    ),
                ),
                Panel(
                    "Age in the queue",
                    "How long the oldest row of a dispatch had waited.",
                    "s",
                    (
                        quantile(0.5, "ebbtide_dispatch_queue_age_seconds"),
                        quantile(0.99, "ebbtide_dispatch_queue_age_seconds"),
                    ),
                ),
                Panel(
                    "Predicted and actual",
                    "Seconds a dispatch: what was foreseen, and what it took.",
                    "s",
                    (
                        Target(
                            f"sum({rate('ebbtide_dispatch_predicted_seconds_total')})"
                            f" / sum({rate('ebbtide_dispatches_total')})",
                            "predicted",
                        ),
                        Target(
                            f"sum({rate('ebbtide_dispatch_seconds_sum')})"
                            f" / sum({rate('ebbtide_dispatch_seconds_count')})",
                            "actual",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Servers",
            (
                Panel(
                    "Redis",
                    "Seconds of a round of questions, by operation.",
                    "s",
                    (
                        quantile(0.99, "ebbtide_redis_call_seconds", "operation"),
                        mean("ebbtide_redis_call_seconds", "operation"),
                    ),
                ),
                Panel(
                    "Kafka",
                    "Seconds until all that was sent together was acknowledged.",
                    "s",
                    (
                        quantile(0.5, "ebbtide_kafka_call_seconds"),
                        quantile(0.99, "ebbtide_kafka_call_seconds"),
                    ),
                ),
                Panel(
                    "Errors",
                    "Questions that failed a second, by server, operation and error.",
                    "cps",
                    (
                        Target(
                            f"sum by (operation, reason) ({rate('ebbtide_redis_errors_total')})",
                            "Redis {{operation}} {{reason}}",
                        ),
                        Target(
                            f"sum by (operation, reason) ({rate('ebbtide_kafka_errors_total')})",
                            "Kafka {{operation}} {{reason}}",
                        ),
                    ),
                ),
                Panel(
                    "Redis' memory",
                    "Bytes used, by server; its limit is the alert RedisMemory's affair.",
                    "bytes",
                    (Target(f"max by (server) ({metric('ebbtide_redis_memory_used_bytes')})", "{{server}}"),),
                ),
            ),
        ),
    ),
)
