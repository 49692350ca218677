"""Ebbtide against real servers: what a fold alone cannot show."""
