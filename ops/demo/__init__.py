"""`ebbtide demo`: the whole service on one machine, on simulated customers whose future is known.

run.py       puts it together
scene.py     who the customers are, and which part of their lives is history, shown, and only truth
training.py  the model, trained on the history by `ebbtide train` in a process of its own
feed.py      their events to Kafka under an accelerated clock, each remembered with its offset and the time it left
watch.py     what comes back: alerts, and the worker's own metrics
verdict.py   alerts against what the customers really did, and against alerting by recency
view.py      all of it in a terminal, or line by line in a file
"""
