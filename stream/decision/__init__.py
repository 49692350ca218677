"""From scores to decisions: who is alerted about, and when an alert is over. Pure: no clock, no I/O, no model.

`policy.py` says what a policy is asked; `episodes.py` is ours, made of rules, a budget and a holdout. `suppression.py`
tells from the committed offset what was said and is not said again.
"""
