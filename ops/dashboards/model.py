"""The model: what it says, whether it says something else than it did, and which version says it."""

from ebbtide.ops.alerting.symptoms import DRIFT_MAX
from ebbtide.ops.dashboards.panels import Board, Panel, Row, Target, metric, quantile, rate

MODEL = Board(
    "ebbtide-model",
    "Ebbtide: model",
    "Scores, drift and versions. Calibration and lift stand in the model's card: they need outcomes.",
    (
        Row(
            "Scores",
            (
                Panel(
                    "Distribution",
                    "Scores a second up to each probability: bands that widen are customers at risk.",
                    "cps",
                    (Target(f"sum by (le) ({rate('ebbtide_score_probability_bucket')})", "≤ {{le}}"),),
                    kind="bars",
                ),
                Panel(
                    "Mean score",
                    "The mean probability, by version.",
                    "percentunit",
                    (
                        Target(
                            f"sum by (version) ({rate('ebbtide_score_probability_sum')})"
                            f" / sum by (version) ({rate('ebbtide_score_probability_count')})",
                            "version {{version}}",
                        ),
                    ),
                ),
                Panel(
                    "Drift",
                    "Distance between the distributions of an hour and of a week, by version (Kolmogorov-Smirnov).",
                    "percentunit",
                    (
                        Target(
                            "max by (version) (abs(ebbtide:score_probability:ecdf1h"
                            " - ebbtide:score_probability:ecdf7d))",
                            "version {{version}}",
                        ),
                    ),
                    red_above=DRIFT_MAX,
                ),
                Panel(
                    "Above one half",
                    "Share of scores above 0.5, by version.",
                    "percentunit",
                    (
                        Target(
                            f"1 - sum by (version) ({rate('ebbtide_score_probability_bucket', le='0.5')})"
                            f" / sum by (version) ({rate('ebbtide_score_probability_count')})",
                            "version {{version}}",
                        ),
                    ),
                ),
                Panel(
                    "Reasons",
                    "Alerts a second whose reasons add up (holds), do not and are not sent (inexact), or are none"
                    " (failed).",
                    "cps",
                    (Target(f"sum by (outcome) ({rate('ebbtide_explanations_total')})", "{{outcome}}"),),
                ),
                Panel(
                    "Age of events",
                    "How old an event was when its score was there: phones send late.",
                    "s",
                    (
                        quantile(0.5, "ebbtide_score_event_age_seconds"),
                        quantile(0.99, "ebbtide_score_event_age_seconds"),
                    ),
                ),
            ),
        ),
        Row(
            "Versions",
            (
                Panel(
                    "In service",
                    "The version that each worker serves.",
                    "short",
                    (Target(metric("ebbtide_model_version"), "{{instance}}"),),
                    kind="number",
                ),
                Panel(
                    "Scored by version",
                    "Scores a second, by version: a swap shows as one line for another.",
                    "cps",
                    (
                        Target(
                            f"sum by (version) ({rate('ebbtide_score_probability_count')})",
                            "version {{version}}",
                        ),
                    ),
                ),
                Panel(
                    "Episodes opened by version",
                    "A new version that opens many more, or none, is not the same judge.",
                    "cps",
                    (
                        Target(
                            f"sum by (version) ({rate('ebbtide_episodes_opened_total')})",
                            "version {{version}}",
                        ),
                    ),
                ),
                Panel(
                    "Compiled",
                    "1 when the version in service is compiled in all its sizes.",
                    "short",
                    (Target(metric("ebbtide_model_warm"), "{{instance}}"),),
                    kind="number",
                ),
                Panel(
                    "Refused",
                    "Versions above the one in service that cannot be served.",
                    "short",
                    (Target(metric("ebbtide_model_versions_refused"), "{{instance}}"),),
                    kind="number",
                    red_above=1.0,
                ),
                Panel(
                    "Not scored",
                    "Records for which the model fails alone, a second.",
                    "cps",
                    (Target(f"sum({rate('ebbtide_dead_letters_total', reason='unscored')})"),),
                ),
            ),
        ),
    ),
)
