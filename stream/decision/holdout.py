"""Customers who are decided about and not alerted: alerts change the outcome they are judged by.

Whoever is in is so by their id alone, today and after any restart, with any model: live calibration, drift and what
alerts are worth are judged on them. Another `salt` draws others.
"""

import hashlib
from typing import NamedTuple


class Holdout(NamedTuple):
    """A share of customers in [0, 1)."""

    share: float = 0.0
    salt: str = ""

    def holds(self, customer: str) -> bool:
        """Whether this customer is one of them."""
        if self.share <= 0.0:
            return False
        drawn = hashlib.blake2b(f"{self.salt}\0{customer}".encode(), digest_size=8).digest()
        return int.from_bytes(drawn, "big") < self.share * 2**64


NOBODY = Holdout()
"""Everybody is alerted about."""
