"""How much of everything a deployment needs: measured unit costs, and the arithmetic that is done with them."""
