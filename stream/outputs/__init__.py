"""What is said: alerts, scores, dead letters and tombstones, as messages for a sink."""
