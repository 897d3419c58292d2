"""What versions of nats-server do with what publishers may send; run by hand when a new one appears."""
