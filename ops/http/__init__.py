"""The worker's HTTP face: health, readiness, metrics and what is known of a customer, within bounds."""
