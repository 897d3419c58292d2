"""Natsblob beside other clients of the Object Store and beside bare loops: see docs/benchmarks.md."""
