"""How a model is judged: metrics, intervals by bootstrap over customers, moments, thresholds."""
