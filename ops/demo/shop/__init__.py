"""The simulated shop: customers whose future is known, and the events that their lives make."""
