"""The command line: thin commands over the SDK, the service and the bucket."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command that the arguments name, and end the process with its exit code."""
    # As long as there is nothing to tidy up, an interrupt ends the process as it would any other.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from natsblob.cli.encoding import show_all
    from natsblob.cli.root import invoke
    from natsblob.cli.running import leave

    show_all(sys.stdout, sys.stderr)
    leave(invoke(sys.argv[1:]))
