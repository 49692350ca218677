"""The local stack: Apache Kafka and Valkey from package registries, under a watchdog that no server outlives."""
