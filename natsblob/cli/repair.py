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
    patience: Annotated[str, Parameter(metavar="TIME")] = "1h",
    common: Common = UNSET,
) -> None:
    """Give servers whose copy is damaged a fresh one, from a copy that has every blob.

    All copies are read and compared first. Where none has every blob nothing is changed, and exit code 4
    says so. The bucket stays in use; for moments nothing can be put.

    Parameters
    ----------
    patience
        How long to wait for one copy to be made.
    """
    from natsblob.maintenance.repair import Repairer
    from natsblob.maintenance.replicas import Comparer

    try:
        seconds = parse_duration(patience)
    except ValueError as error:
        raise UsageError(f"{error}; write 2h") from error

    def tell(text: str) -> None:
        if not common.quiet:
            say(f"natsblob: {text}")

    async with stored(common) as one:
        comparer = Comparer(one.objects, one.copies)
        repairer = Repairer(one.objects.bucket, comparer, one.copies, patience=seconds, say=tell)
        await show(await repairer.repair(), common)
