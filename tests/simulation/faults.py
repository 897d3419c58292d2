"""What may go wrong in one schedule, and how often: all of it drawn from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(slots=True)
class Faults:
    """Probabilities are per message, times in seconds. All zero: a network that works."""

    lost: float = 0.0
    duplicated: float = 0.0
    reordered: float = 0.0
    late: float = 0.0
    """A delay of up to 8 s, longer than any single attempt waits."""
    refused: float = 0.0
    """Answered with a passing error, or `no responders`."""
    lag: float = 0.0
    """How long replicas may lag behind."""
    outages: int = 0
    """Periods in which the stream has no leader."""
    cuts: int = 0
    """Times that a connection is lost and comes back."""
    full: int = 0
    """Periods in which the storage is full."""
    crashes: int = 0
    """Workers that die at one of their steps."""
    cancels: float = 0.0
    """Calls that are cancelled at one of their steps."""
    clock_step: float = 0.0
    """By how much the server's clock may step, in either direction."""
    idles: float = 0.0
    """How often a caller pauses for hours between two steps."""
    undecided: float = 0.0
    """How often servers take up to 8 s to agree on a message that expects to be the first, or the next."""
    slow: float = 0.0
    """How often a caller pauses for seconds in the middle of a put by a worker."""
    max_age: float = 0.0
    """How long the bucket keeps what is written, if not for ever. No fault, but the same questions."""
    rot: float = 0.0
    """How much of what is visible one copy, the leader's or another, loses unnoticed."""
    hostile: float = 0.0
    """How often a caller is a publisher with odd headers, or two of them for one stage."""
    closed: int = 0
    """Times that a worker's connection to the storage is away for long, until another one is made."""
    remade: int = 0
    """Times that somebody deletes the stream and makes it anew, under running workers."""
    damage: bool = False
    """Whether a chunk rots on all copies in the end: that is noticed by who reads it, and healed by a put."""

    @property
    def are_harmless(self) -> bool:
        """Whether every call has to succeed in spite of them, and at once."""
        disturbing = (self.lost, self.late, self.refused, self.undecided, self.lag, self.cancels, self.rot)
        rare = (self.outages, self.cuts, self.full, self.crashes, self.closed, self.remade)
        return not any(disturbing) and not any(rare)

    @classmethod
    def drawn(cls, random: Random) -> Faults:
        """Some kinds of faults together, each mild or hard; a few schedules have none."""

        def maybe(value: float) -> float:
            return value * random.choice((0.2, 0.5, 1.0)) if random.random() < 0.45 else 0.0

        faults = cls(
            lost=maybe(0.15),
            duplicated=maybe(0.2),
            reordered=maybe(0.4),
            late=maybe(0.08),
            refused=maybe(0.15),
            lag=maybe(20.0),
            outages=random.choice((0, 0, 0, 1, 2)),
            cuts=random.choice((0, 0, 0, 1, 3)),
            full=random.choice((0, 0, 0, 0, 1)),
            crashes=random.choice((0, 0, 1, 2)),
            cancels=maybe(0.3),
            clock_step=maybe(6 * 3600.0),
            idles=maybe(0.2),
            undecided=maybe(0.5),
            slow=maybe(0.5),
            rot=random.choice((0.0, 0.0, 0.0, 0.3, 1.0)),
            hostile=maybe(0.6),
            closed=random.choice((0, 0, 0, 0, 1, 2)),
            damage=random.random() < 0.3,
        )
        if (
            not faults.rot and random.random() < 0.1
        ):  # what one copy lost would be looked for in another stream
            faults.remade = random.choice((1, 2))
        if not faults.clock_step and random.random() < 0.15:  # a step would have everything expire
            faults.max_age = 4 * 3600.0
        return faults
