"""How likely is churn, given what we know? One graph from record to probability, made and served by the same code."""
