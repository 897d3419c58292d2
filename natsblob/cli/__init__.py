"""The command line: thin commands over the SDK, the service and the bucket."""

# Built into the interpreter: what has to be read from a file first leaves time for an interrupt.
import _signal  # type: ignore[import-not-found]
import os
import sys

_STDERR = 2


def main() -> None:
    """Run the command that the arguments name, and end the process with its exit code."""
    # As long as there is nothing to tidy up, an interrupt ends the process as it would any other.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from natsblob.cli.encoding import show_all
    from natsblob.cli.root import invoke
    from natsblob.cli.running import leave

    _occupy_closed_streams()
    show_all(sys.stdout, sys.stderr)
    leave(invoke(sys.argv[1:]))


def _occupy_closed_streams() -> None:
    """Let nothing else get the number of a standard stream that is closed, here or in worker processes."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(number, True)  # noqa: FBT003
    os.close(number)
