"""Requests of every kind, over the wire, each held to what `docs/protocol.md` allows as its answer."""
