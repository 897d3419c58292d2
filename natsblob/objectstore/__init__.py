"""The Object Store engine (ADR-20): a bucket, the chunks in it, and the metadata that names them."""
