"""Who, and why: a customer and those at risk, as answers. The worker's `/v1` and the commands give the same ones."""
