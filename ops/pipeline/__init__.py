"""The factory's runs: where artifacts lie, what is made anew, what is reused, and what a run has to say for itself.
What a stage does is `model/factory`'s."""
