"""A deterministic simulation: the real code, against a model of JetStream, in virtual time."""
