"""What callers did and heard in one schedule, and the invariants that it has to satisfy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from natsblob.errors import (
    BadRequestError,
    BlobError,
    BlobNotFoundError,
    BusyError,
    ConflictError,
    DeadlineError,
    DigestMismatchError,
    InsufficientStorageError,
    UnavailableError,
    UploadExpiredError,
)
from tests.simulation.stream import ViolationError

REQUEST_TIMEOUT: Final = 60.0
"""Seconds that a worker gives itself for one request."""
_CLEANUP: Final = 16.0
"""Seconds that cleanups may take after that: three in a row, each with its own bound."""

HOSTILE: Final = "hostile"
"""A publisher of chunks that keeps to nothing: it may be refused, but what it is told is true as well."""
CLIENT: Final = "client"
"""How a call was made that went through the SDK: its requests are repeated, and may arrive late."""
_TRANSFER: Final = 900.0
"""Seconds for a put or get by a client, which goes on for as long as there is progress."""

Verb = Literal["put", "get", "has", "delete", "abort", "collect"]
_PASSING: Final = (UnavailableError, DeadlineError, BusyError, InsufficientStorageError)
_HARMLESS: Final[dict[Verb, tuple[type[BlobError], ...]]] = {
    "put": (*_PASSING, UploadExpiredError),
    "get": (*_PASSING, BlobNotFoundError),
    "has": _PASSING,
    "delete": (*_PASSING, BlobNotFoundError),
    "abort": (*_PASSING, UploadExpiredError, ConflictError),
    "collect": _PASSING,
}


@dataclass(slots=True)
class Call:
    """One call of one caller. `began` of a staged put is when its first chunk was published."""

    verb: Verb
    blob: int
    caller: str
    began: float
    ended: float = math.inf
    found: bool | None = None
    error: BaseException | None = None
    how: str = ""

    @property
    def is_acknowledged(self) -> bool:
        return self.ended < math.inf and self.error is None

    @property
    def may_act_until(self) -> float:
        """The outcome of a call that failed is not known, and what it sent may arrive later."""
        settled = self.how != CLIENT and (self.error is None or isinstance(self.error, BlobNotFoundError))
        return self.ended if settled else math.inf

    def __str__(self) -> str:
        outcome = "ok" if self.error is None else f"{type(self.error).__name__}: {self.error}"
        if self.found is not None:
            outcome = "found" if self.found else "not found"
        times = f"{self.began:12.4f} {self.ended:12.4f}"
        return f"{times}  {self.caller:<9} {self.verb:<8} {self.how:<14} blob {self.blob}  {outcome}"


@dataclass(slots=True)
class History:
    """All calls of a schedule, and what happened around them, in order of their beginning."""

    calls: list[Call] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    remade: list[float] = field(default_factory=list)
    """When somebody made the stream anew."""
    lease: float = math.inf
    """Seconds for which an acknowledged blob is to stay at least."""

    def lines(self) -> Iterator[str]:
        """For people, in order of time."""
        told = [(call.began, str(call)) for call in self.calls]
        told += [(at, f"{at:12.4f} {'':12}  -- {what}") for at, what in self.events]
        return (line for _, line in sorted(told, key=lambda pair: pair[0]))

    def check(self, *, all_succeed: bool) -> None:
        """`ViolationError` where a call heard what it must not, too late, or of no good reason."""
        for call in self.calls:
            self._check_outcome(call)
            is_unexplained = isinstance(call.error, _PASSING) and not self._met_delete(call)
            is_passing_by = call.verb == "collect" or call.how == HOSTILE
            if all_succeed and not is_passing_by and is_unexplained:
                raise ViolationError(f"a call failed although nothing stood in its way:\n{call}")
            if call.verb in ("get", "has") and call.found is False:
                self._check_missing(call)

    def must_exist(self, blob: int, since: float, until: float) -> Call | None:
        """A put that was acknowledged before `since` and no delete can have undone by `until`."""
        puts = (call for call in self.calls if call.verb == "put" and call.blob == blob)
        deletes = [call for call in self.calls if call.verb == "delete" and call.blob == blob]
        for put in puts:
            if any(put.began < at for at in self.remade):
                continue
            undone = any(undo.began < until and undo.may_act_until > put.began for undo in deletes)
            lasts = put.ended + self.lease > until
            if put.is_acknowledged and put.ended < since and lasts and not undone:
                return put
        return None

    def _met_delete(self, call: Call) -> bool:
        """Whether it is a put during which the same blob was deleted: that is answered by "repeat it"."""
        return call.verb == "put" and any(
            other.verb == "delete"
            and other.blob == call.blob
            and other.began < call.ended
            and other.ended > call.began
            for other in self.calls
        )

    def _check_missing(self, call: Call) -> None:
        put = self.must_exist(call.blob, call.began, call.ended)
        if put is not None:
            raise ViolationError(f"acknowledged, and then not found:\n{put}\n{call}")

    def _check_outcome(self, call: Call) -> None:
        if call.ended == math.inf:
            raise ViolationError(f"a call was not answered:\n{call}")
        is_transfer = call.how == CLIENT and call.verb in ("put", "get")
        allowed = _TRANSFER if is_transfer else REQUEST_TIMEOUT + _CLEANUP
        if call.how not in ("staged", HOSTILE) and call.ended - call.began > allowed:
            raise ViolationError(f"a call was answered after its deadline:\n{call}")
        refusals: tuple[type[BlobError], ...] = ()
        if call.how == HOSTILE:
            refusals = (BadRequestError, DigestMismatchError)
        elif self.remade and call.verb == "put":
            refusals = (DigestMismatchError,)  # chunks that were stored are gone
        if isinstance(call.error, BlobError) and not isinstance(
            call.error, (*_HARMLESS[call.verb], *refusals)
        ):
            raise ViolationError(f"a call failed in a way that nothing explains:\n{call}") from call.error
