"""The business: who is at risk, what was said of them, and what became of it."""

from ebbtide.ops.dashboards.panels import Board, Panel, Row, Target, metric, quantile, rate

_ENDED = "resolved|corrected"

BUSINESS = Board(
    "ebbtide-business",
    "Ebbtide: customers",
    "Customers at risk, alerts about them, and how their episodes ended.",
    (
        Row(
            "At risk",
            (
                Panel(
                    "Customers",
                    "Customers that the workers hold in Redis now.",
                    "short",
                    (Target(f"sum({metric('ebbtide_customers')})"),),
                    kind="number",
                ),
                Panel(
                    "Episodes opened",
                    "Customers who came to be at risk, within the chosen time.",
                    "short",
                    (
                        Target(
                            f"sum(increase({metric('ebbtide_alerts_total', transition='opened')}[$__range]))"
                        ),
                    ),
                    kind="number",
                ),
                Panel(
                    "Episodes resolved",
                    "Customers who came back, left explicitly or were given up, within the chosen time.",
                    "short",
                    (
                        Target(
                            f"sum(increase({metric('ebbtide_alerts_total', transition='resolved')}[$__range]))"
                        ),
                    ),
                    kind="number",
                ),
                Panel(
                    "Episodes escalated",
                    "Customers at risk who came into a higher band, within the chosen time.",
                    "short",
                    (
                        Target(
                            f"sum(increase({metric('ebbtide_alerts_total', transition='escalated')}[$__range]))"
                        ),
                    ),
                    kind="number",
                ),
                Panel(
                    "Change of those at risk",
                    "Episodes opened less episodes ended, a second: above 0 it gets worse.",
                    "cps",
                    (
                        Target(
                            f"sum({rate('ebbtide_alerts_total', transition='opened')})"
                            f" - sum({rate('ebbtide_alerts_total', transition=_ENDED)})"
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Alerts",
            (
                Panel(
                    "Alerts",
                    "Alerts a second, by what they say.",
                    "cps",
                    (Target(f"sum by (transition) ({rate('ebbtide_alerts_total')})", "{{transition}}"),),
                ),
                Panel(
                    "Alerts by band",
                    "Alerts a second, by the band of risk that their episode is in.",
                    "cps",
                    (Target(f"sum by (band) ({rate('ebbtide_alerts_total')})", "{{band}}"),),
                ),
                Panel(
                    "Held back",
                    "Decisions a second that nobody was told of: the budget was used up, or the customer is held out.",
                    "cps",
                    (Target(f"sum by (by) ({rate('ebbtide_alerts_held_back_total')})", "{{by}}"),),
                ),
                Panel(
                    "By probability",
                    "Episodes opened a second, by the probability at which they did.",
                    "cps",
                    (Target(f"sum by (band) ({rate('ebbtide_episodes_opened_total')})", "from {{band}}"),),
                    kind="bars",
                ),
                Panel(
                    "Age of decisions",
                    "From the moment that a decision is as of to its alert: silence is noticed late.",
                    "s",
                    (quantile(0.5, "ebbtide_alert_decision_age_seconds", "cause"),),
                ),
                Panel(
                    "Points decided",
                    "Decision points a second, by what brought them about.",
                    "cps",
                    (Target(f"sum by (cause) ({rate('ebbtide_decision_points_total')})", "{{cause}}"),),
                ),
                Panel(
                    "Forgotten",
                    "Customers forgotten at their wish, a second.",
                    "cps",
                    (Target(f"sum({rate('ebbtide_customers_forgotten_total')})"),),
                ),
            ),
        ),
    ),
)
