"""Grafana's dashboards as code: what is shown (service, model, business), and how it becomes JSON (build.py)."""
