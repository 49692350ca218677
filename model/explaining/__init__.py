"""Why a logit is what it is: each part of a model taken apart against one stated baseline, in parts that add up.

The baseline is a customer at the training mean of every feature (as it is squeezed), with an empty sequence.
"""
