"""Prometheus' rules, generated: objectives and their burn rates, and symptoms that a person should look at."""
