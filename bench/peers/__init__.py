"""The clients that are compared. Each runs in a process of its own and obeys orders on standard input."""
