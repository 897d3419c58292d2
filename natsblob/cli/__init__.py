"""The command line: thin commands over the SDK, the service and the bucket."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the arguments name, and end the process with its exit code."""
    try:
        from natsblob.cli.root import invoke
        from natsblob.cli.running import leave

        leave(invoke(sys.argv[1:]))
    except KeyboardInterrupt:  # before anything has begun
        sys.exit(130)
