"""What staged chunks have to look like to be named as they lie (ADR 0014). No I/O.

Whoever may publish a chunk chooses its headers, and they are delivered to every reader of the blob. So the
header block of a chunk is exactly the one that natsblob writes: three lines, in any order, and nothing else.
"""

from __future__ import annotations

from typing import Final

from natsblob import chunking, wire

VERSION: Final = b"NATS/1.0"
_LINE: Final = b"\r\n"
_ADDED_BY_DIRECT_READS: Final = b"\r\nNats-Stream: "
_ADDED_BY_CONSUMERS: Final = b"\r\nNats-Msg-Size: "
_SPARE: Final = 16


def most_messages(size: int, chunk_size: int) -> int:
    """How many messages an upload of `size` bytes may have: more is no mistake that is worth mending.

    Another worker may have opened it, with other chunks, or a client that cannot publish larger ones.
    """
    return 4 * chunking.count(size, min(chunk_size, wire.LEAST_CHUNK)) + _SPARE


def is_canonical(block: bytes, stage: str, index: int, crc: int) -> bool:
    """Whether this is, byte for byte but for the order of lines, the header block of the chunk."""
    wanted = [f"{name}: {value}".encode() for name, value in wire.headers_of(stage, index, crc).items()]
    lines = block.split(_LINE)
    return lines[:1] == [VERSION] and lines[-2:] == [b"", b""] and sorted(lines[1:-2]) == sorted(wanted)


def before_direct_read(block: bytes) -> bytes:
    """The block as it was stored, of a message that a direct read delivers.

    The server overwrites the last two bytes, whatever they were: that a block had its end cannot be seen.
    """
    at = block.rfind(_ADDED_BY_DIRECT_READS)
    return b"" if at < 0 else block[:at] + _LINE + _LINE


def before_headers_only(block: bytes) -> tuple[bytes, int]:
    """The same of a message that a consumer delivers without its payload, and the size of that, or -1."""
    at = block.rfind(_ADDED_BY_CONSUMERS)
    size = block[at + len(_ADDED_BY_CONSUMERS) :].removesuffix(_LINE + _LINE)
    if at < 0 or not size.isdigit() or len(size) > 16:
        return b"", -1
    return block[:at] + _LINE + _LINE, int(size)
