"""Every alert caused for real: `python -m tests.alerts`, or `make alerts`."""
