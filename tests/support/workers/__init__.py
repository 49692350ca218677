"""Whole workers in this process or in one of their own, and outages around them."""
