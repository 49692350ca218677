"""Chaos: everything that may fail does, and afterwards every record and every alert is compared. `make chaos`.

Read `__main__.py` first, then `run.py`.
"""
