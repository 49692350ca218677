"""Durations and instants: one parser and one printer each."""
