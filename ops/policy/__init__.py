"""What a policy would have sent on history: the log scored once, then decided by as many policies as are asked for.

The fold, the model and the policy are the service's own; nothing here decides.
"""
