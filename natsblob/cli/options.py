"""The options that all commands have, and the settings that they and the other sources make."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Group, Parameter

from natsblob.cli.exits import UsageError
from natsblob.config import Loaded, load
from natsblob.errors import DeadlineError, SetupError
from natsblob.logs import configure_logging

if TYPE_CHECKING:
    from natsblob.client import Client
    from natsblob.wire import Caps

BLOBS: Final = Group("Blobs", sort_key=1)
SERVICE: Final = Group("The service", sort_key=2)
MORE: Final = Group("More", sort_key=3)
_CONNECTION: Final = Group("Connection", sort_key=20)
_OUTPUT: Final = Group("Output", sort_key=30)
_FIRST_ANSWER: Final = 3.0
"""Seconds within which somebody must answer at all: a missing worker is told at once."""


@Parameter(name="*", group=_CONNECTION)
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command; what is not given comes from the environment and the configuration."""

    server: Annotated[str | None, Parameter(name=["--server", "-s"], metavar="URL")] = None
    """Where NATS is, such as nats://host:4222; several with commas between."""
    context: Annotated[str | None, Parameter(metavar="NAME")] = None
    """A context of the nats command line to take the connection from."""
    creds: Annotated[str | None, Parameter(metavar="FILE")] = None
    """A credentials file."""
    prefix: Annotated[str | None, Parameter(metavar="NAME")] = None
    """What the service's subjects begin with. [default: blob]"""
    bucket: Annotated[str | None, Parameter(metavar="NAME")] = None
    """The bucket that blobs lie in. [default: blobs]"""
    timeout: Annotated[str | None, Parameter(metavar="TIME")] = None
    """How long to wait for an answer, or for a transfer to get on, such as 90s. [default: 1m]"""
    config: Annotated[str | None, Parameter(metavar="FILE")] = None
    """The configuration file. [default: ./natsblob.toml, ~/.config/natsblob/config.toml]"""
    json: Annotated[bool, Parameter(group=_OUTPUT)] = False
    """Print results as JSON, one object a line."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], group=_OUTPUT)] = False
    """Print less: no progress, no remarks."""

    def load(self, **more: object) -> Loaded:
        """The settings in force, with further flags; `UsageError` if they make no sense."""
        names = ("server", "context", "creds", "prefix", "bucket", "timeout", "config")
        try:
            return load({**{name: getattr(self, name) for name in names}, **more})
        except SetupError as error:
            raise UsageError(error.message) from error


UNSET: Final = Common()
"""No option given."""


@asynccontextmanager
async def blobs_of(common: Common) -> AsyncIterator[Client]:
    """The service that the options name. If nobody answers at all, that is told at once."""
    from natsblob.broker.connection import Access
    from natsblob.client import connect

    loaded = common.load()
    keep_quiet(loaded)
    settings = loaded.settings
    access = Access.of(settings, "natsblob cli")
    async with connect(access, prefix=settings.prefix, timeout=settings.timeout) as blobs:
        caps: Caps | None = None
        with suppress(DeadlineError):  # somebody listens, and is slow: the command has more time
            caps = await blobs.caps(timeout=min(_FIRST_ANSWER, settings.timeout))
        if "bucket" in loaded.sources:
            check_bucket(loaded, caps or await blobs.caps())
        yield blobs


def check_bucket(loaded: Loaded, caps: Caps) -> None:
    """Refuse a bucket that the service does not serve: the prefix chooses what is spoken to."""
    settings = loaded.settings
    if caps.bucket != settings.bucket:
        raise UsageError(
            f"the service under the prefix {settings.prefix} serves the bucket {caps.bucket}, not "
            f"{settings.bucket} (from {loaded.sources['bucket']}); --prefix names another service"
        )


def keep_quiet(loaded: Loaded) -> None:
    """Have the libraries beneath log errors only, to stderr, unless the settings ask for more."""
    level = loaded.settings.log_level if "log_level" in loaded.sources else "error"
    configure_logging(level, loaded.settings.log_format)
