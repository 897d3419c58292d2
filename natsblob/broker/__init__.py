"""Everything that speaks NATS: connections, JetStream's API, windows of messages, the embedded server.

The only package that imports the client library; its exceptions do not leave it (`translate`).
"""
