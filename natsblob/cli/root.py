"""The tree of commands, its first page of help, and how arguments become a command that runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as installed
from inspect import isawaitable
from typing import Any, Final, Literal

from cyclopts import App, CycloptsError, Parameter

from natsblob.cli import bench, blobs, diagnosis, repair, serving, verify
from natsblob.cli.bucket import bucket
from natsblob.cli.exits import Exit
from natsblob.cli.options import BLOBS, MORE, SERVICE
from natsblob.cli.running import run
from natsblob.cli.terminal import complain

_FIRST_PAGE: Final = "Blobs on NATS: put a file, get it back by the SHA-256 of its bytes, verified."

_EPILOGUE: Final = """\
Try it:

  natsblob serve --embedded          a server and a worker on this machine
  natsblob put photo.raw             prints the digest
  natsblob get DIGEST -o copy.raw    verified before copy.raw appears
  tar c src | natsblob put -         it pipes
  natsblob doctor                    when something is amiss

Each command has its own --help. Settings come from flags, the environment,
a NATS context and a file; `natsblob config show` says which from where.

Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 digest mismatch,
5 nobody answers, 6 not allowed, 7 timeout, 130 interrupted."""

_USAGES: Final[Mapping[Callable[..., Any], str]] = {
    blobs.put: "natsblob put [OPTIONS] FILE... | -",
    blobs.get: "natsblob get [OPTIONS] DIGEST [-o PATH]",
    blobs.has: "natsblob has [OPTIONS] DIGEST...",
    blobs.stat: "natsblob stat [OPTIONS] DIGEST...",
    blobs.ls: "natsblob ls [OPTIONS] [START]",
    blobs.rm: "natsblob rm [OPTIONS] DIGEST...",
}

_PLAIN: Final = {"help_epilogue": "", "help_format": "markdown"}
"""Further pages of help: without the tour, and with paragraphs that are as wide as the terminal."""


def _root() -> App:
    app = App(
        name="natsblob",
        help=_FIRST_PAGE,
        help_epilogue=_EPILOGUE,
        help_format="plaintext",
        usage="Usage: natsblob COMMAND [OPTIONS]",
        version=lambda: installed("natsblob"),
        group_commands=MORE,
        default_parameter=Parameter(negative="", show_default=False),
    )
    for place, (command, usage) in enumerate(_USAGES.items()):
        app.command(command, group=BLOBS, sort_key=place, usage=f"Usage: {usage}", **_PLAIN)
    app.command(serving.serve, group=SERVICE, sort_key=1, **_PLAIN)
    app.command(diagnosis.doctor, group=SERVICE, sort_key=2, **_PLAIN)
    app.command(verify.verify, group=SERVICE, sort_key=4, **_PLAIN)
    app.command(repair.repair, group=SERVICE, sort_key=5, **_PLAIN)
    app.command(bench.bench, group=SERVICE, sort_key=6, **_PLAIN)
    app.command(bucket)
    app.command(diagnosis.config)
    app.command(diagnosis.version, **_PLAIN)

    def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
        """Print what completes commands and options in a shell.

        For bash: eval "$(natsblob completion bash)" in ~/.bashrc.

        Parameters
        ----------
        shell
            The shell to complete in.
        """
        if sys.stdout is not None:
            sys.stdout.write(app.generate_completion(shell=shell))

    app.command(completion, **_PLAIN)
    return app


def invoke(arguments: Sequence[str]) -> Exit:
    """Run the command that the arguments name; its exit code."""
    app = _root()
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        at = " ".join(("natsblob", *(error.command_chain or ())))
        complain(" ".join(str(error).split()), f"`{at} --help` shows how it is used.")
        return Exit.USAGE

    async def execute() -> Exit | None:
        result = command(*bound.args, **bound.kwargs)
        return await result if isawaitable(result) else None

    return run(execute)
