"""natsblob: a content-addressed blob service that lives on NATS."""
