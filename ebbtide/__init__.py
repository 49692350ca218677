"""Ebbtide: streaming, real-time churn scoring.

    ebbtide.featurestore   what do we know of a customer as of t
    ebbtide.model          how likely is churn; the factory of its own models
    ebbtide.stream         events to alerts
    ebbtide.ops            run it, watch it

The four packages lie beside this folder, where a reader looks for them, and are linked into it. So the distribution
owns one import name: `model`, `ops` and `stream` alone would meet other people's modules of that name.
"""
