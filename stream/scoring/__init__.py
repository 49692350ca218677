"""Rows of all partitions on their way to the model: how many at once, on which thread, and what happens to bad ones."""
