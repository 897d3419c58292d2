"""Command repair: make the copies of a bucket agree again."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from natsblob.cli.exits import UsageError
from natsblob.cli.options import UNSET, Common
from natsblob.cli.terminal import say
from natsblob.cli.verify import show, stored
from natsblob.config.quantity import parse_duration


async def repair(
    *,
    online: bool = False,
    patience: Annotated[str, Parameter(metavar="TIME")] = "1h",
    common: Common = UNSET,
) -> None:
    """Give servers whose copy is damaged a fresh one, from a copy that has every blob.

    All copies are read and compared first. If none has every blob, nothing is changed, and exit code 4
    says so. The bucket stays in use; for moments nothing can be put. Another server takes over if there
    is one to spare. Otherwise it asks for the damaged server to be stopped, and later to be started again,
    and waits for that: so no whole copy is ever given up.

    Parameters
    ----------
    online
        Stop no server. A single whole copy may then be all there is until the next one is made.
    patience
        How long to wait for one copy to be made, and for a server to be stopped or started.
    """
    from natsblob.maintenance.repair import Repairer
    from natsblob.maintenance.replicas import Comparer

    try:
        seconds = parse_duration(patience)
    except ValueError as error:
        raise UsageError(f"{error}; write 2h") from error

    def tell(text: str) -> None:
        say(f"natsblob: {text}")

    async with stored(common) as one:
        comparer = Comparer(one.objects, one.copies)
        repairer = Repairer(
            one.objects.bucket, comparer, one.copies, patience=seconds, say=tell, online=online
        )
        await show(await repairer.repair(), common)
