"""The worker: requests come in over NATS, handlers answer them from a store."""
