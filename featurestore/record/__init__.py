"""What is kept of a customer: the layout of the record, the fold that moves it, and the features that are read from it.

Pure functions of events in offset order: no clock, no randomness, no I/O.
"""
