"""Break one thing on purpose, on this machine, and see what an operator sees and what became of the promises."""
