"""Naive implementations, written apart, and the random histories they are tried on."""
