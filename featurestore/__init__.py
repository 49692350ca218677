"""What do we know of this customer as of t? Event, spec, layout, fold, store: the floor that all else stands on."""
