"""The store in Redis, Valkey, a Cluster or behind Sentinels: keys, one script a commit, and what a refusal means."""
