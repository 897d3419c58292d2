"""Commands for blobs: put, get, has, stat, ls and rm."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from stat import S_ISDIR, S_ISSOCK
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from cyclopts import Parameter

from natsblob.cli.exits import Exit, FileError, UsageError
from natsblob.cli.options import UNSET, Common, blobs_of
from natsblob.cli.running import told
from natsblob.cli.terminal import Stdout, bytes_of, progress, say, short, text_of
from natsblob.client.download import save
from natsblob.client.sources import read_descriptor
from natsblob.client.target import target_of
from natsblob.digest import Digest
from natsblob.errors import BadRangeError, BadRequestError, BlobNotFoundError
from natsblob.wire import Info

if TYPE_CHECKING:
    from natsblob.client import BlobReader, BlobSource, Client, Progress

STDIN: Final = "-"
_CONTROL: Final = bytes({*range(32), 127} - set(b"\t\n\r\f\b"))

_START: Final = re.compile(r"[0-9a-f]{0,64}", re.ASCII)
_BLOCK: Final = 512 * 1024

Digests: TypeAlias = Annotated[str, Parameter(metavar="DIGEST")]


async def put(
    *files: Annotated[str, Parameter(metavar="FILE", allow_leading_hyphen=True)], common: Common = UNSET
) -> None:
    """Store files and print their digests, one a line.

    Lines come in the order given. `-` is standard input. A blob that is stored already is not
    stored again, and its digest is printed all the same. The first file that fails ends the command: the
    lines stand for the files before it.

    Parameters
    ----------
    files
        Files to store; `-` for standard input.
    """
    if files.count(STDIN) > 1:
        raise UsageError("standard input can be put once: give - once")
    sources = [(name, _source(name)) for name in files]
    if not sources:
        raise UsageError("name a file to put, or - for standard input: natsblob put FILE…")
    out = Stdout()
    async with blobs_of(common) as blobs:
        for name, source in sources:
            with progress(f"put {name}", wanted=not common.quiet) as report:
                info = await _put(blobs, name, source, report)
            if common.json:
                await out.record({"file": text_of(name), **_fields(info)})
            else:
                await out.line(str(info.digest))
            await out.flush()


async def _put(blobs: Client, name: str, source: BlobSource, report: Progress | None) -> Info:
    try:
        return await blobs.put(source, progress=report)
    except OSError as error:
        named = "standard input" if name == STDIN else name
        raise FileError(f"{named}: {error.strerror or error}; nothing of it was put") from error


def _source(name: str) -> BlobSource:
    """What the argument names; `FileError` if it cannot be put: better now than behind the others."""
    if name == STDIN:
        if sys.stdin is None:
            raise FileError("standard input is closed; nothing was put")
        if sys.stdin.isatty():
            say("natsblob: reading from the terminal; Ctrl-D ends it")
        return sys.stdin.buffer if sys.stdin.seekable() else read_descriptor(sys.stdin.fileno(), _BLOCK)
    if not name:
        raise UsageError("the name of a file is empty; nothing was put")
    path = Path(name)
    try:
        kind = path.stat().st_mode
    except OSError as error:
        if name.startswith("-") and isinstance(error, FileNotFoundError):
            raise UsageError(
                f"{name} is neither an option nor a file; `natsblob put --help` shows the options"
            ) from error
        reason = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise FileError(f"{name}: {reason}; nothing was put") from error
    if S_ISDIR(kind):
        raise FileError(f"{name} is a directory; put its files: natsblob put {name}/*")
    if S_ISSOCK(kind):
        raise FileError(f"{name} is a socket, which cannot be read as a file; nothing was put")
    if not os.access(path, os.R_OK):
        raise FileError(f"{name} cannot be read; nothing was put")
    return path


async def get(
    digest: Annotated[str, Parameter(metavar="DIGEST")],
    /,
    *,
    output: Annotated[
        str | None, Parameter(name=["--output", "-o"], metavar="PATH", allow_leading_hyphen=True)
    ] = None,
    offset: Annotated[int, Parameter(metavar="N")] = 0,
    length: Annotated[int | None, Parameter(metavar="N")] = None,
    common: Common = UNSET,
) -> None:
    """Read a blob or a part of it, and verify it.

    With -o PATH it is checked before PATH appears, and a transfer that broke off is resumed when the
    command is repeated. Bytes on standard output cannot be taken back: exit code 4 says that they are
    wrong. A range is checked by the sums of its chunks, since the digest is of the whole.

    Parameters
    ----------
    output
        Write to this file; in a directory that exists, to one named by the digest. As with cp, a link
        leads to the file that is written, an existing file keeps its mode, and a FIFO or a device gets
        the bytes. `-` is standard output, even if that is a terminal.
    offset
        Begin at this byte.
    length
        Read this many bytes. [default: to the end]
    """
    address = parse(digest)
    if offset < 0 or (length is not None and length < 0):
        raise UsageError("--offset and --length are 0 or more")
    whole = offset == 0 and length is None
    if output is None or output == STDIN:
        await _to_stdout(address, offset, length, common, anything=output == STDIN)
        return
    path = _target(output, address)
    async with blobs_of(common) as blobs:
        with _naming(path):
            if whole:
                with progress(f"get {short(address)}", wanted=not common.quiet) as report:
                    size = (await blobs.download(address, path, progress=report)).size
            else:
                async with blobs.open(address) as reader:
                    size = await save(_range(reader, offset, length), path)
    out = Stdout()
    if common.json:
        await out.record({"digest": str(address), "path": text_of(path), "size": size})
        await out.flush()
    elif not common.quiet and sys.stderr.isatty():
        say(f"{bytes_of(size)} in {path}{', verified' if whole else ''}")


def _target(output: str, digest: Digest) -> str:
    """The file to write; `FileError` if it cannot be: better now than when the bytes are here."""
    if not output:
        raise UsageError("the name of the output is empty; -o - is standard output")
    with _naming(output):
        path = str(Path(output) / str(digest)) if Path(output).is_dir() else output
        with target_of(path):
            return path


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Tell of errors of the file system with the path."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        stream = Path(path).exists() and not Path(path).is_file()
        full = error.errno in (ENOSPC, EDQUOT, EFBIG) and not stream
        rest = "; repeating this goes on from what has arrived" if full else ""
        named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else path
        raise FileError(f"{named}: {error.strerror or error}{rest}") from error


async def _to_stdout(
    digest: Digest, offset: int, length: int | None, common: Common, *, anything: bool
) -> None:
    """Stream to standard output; to a terminal only what it can show, unless `anything` is wanted."""
    out = Stdout()
    careful = out.is_terminal and not anything
    async with blobs_of(common) as blobs, blobs.open(digest) as reader:
        with progress(f"get {short(digest)}", wanted=not (common.quiet or out.is_terminal)) as report:
            done = 0
            async for data in _range(reader, offset, length):
                if careful and len(data.translate(None, _CONTROL)) != len(data):
                    raise UsageError(
                        "the blob is binary, and standard output is a terminal; "
                        "use -o FILE, or -o - to have it all the same"
                    )
                await out.write(data)
                done += len(data)
                if report:
                    report(done, None if length is not None or offset else reader.size)


async def _range(reader: BlobReader, offset: int, length: int | None) -> AsyncGenerator[bytes, None]:
    """The bytes from `offset` on, `length` of them (`None`: to the end), as they come."""
    if offset > reader.size:
        raise BadRangeError(f"offset {offset} lies beyond the {reader.size} bytes of the blob")
    reader.seek(offset)
    if reader.size == 0:
        await reader.read()  # which verifies that there should be nothing
    left = reader.size - offset if length is None else min(length, reader.size - offset)
    while left > 0:
        data = await reader.read(min(left, _BLOCK))
        left -= len(data)
        yield data


async def has(*digests: Digests, common: Common = UNSET) -> Exit:
    """Say whether blobs are stored.

    Exit code 3 if any is missing. Prints a line for each digest: the digest, and `present` or
    `missing`. With --quiet nothing, and the
    exit code tells.

    Parameters
    ----------
    digests
        Addresses of blobs: 64 hex digits each.
    """
    addresses = _parsed(digests)
    async with blobs_of(common) as blobs:
        missing = set(await blobs.missing(addresses))
    out = Stdout()
    for address in addresses:
        if common.json:
            await out.record({"digest": str(address), "exists": address not in missing})
        elif not common.quiet:
            await out.line(f"{address} {'missing' if address in missing else 'present'}")
    await out.flush()
    return Exit.NOT_FOUND if missing else Exit.OK


async def stat(*digests: Digests, common: Common = UNSET) -> Exit:
    """Show the size of blobs, and when they were stored.

    Parameters
    ----------
    digests
        Addresses of blobs: 64 hex digits each.
    """
    out = Stdout()

    async def show(blobs: Client, address: Digest) -> None:
        info = await blobs.stat(address)
        if common.json:
            await out.record(_fields(info))
        else:
            for line in _described(info):
                await out.line(line)

    return await _each(digests, common, out, show)


async def rm(*digests: Digests, common: Common = UNSET) -> Exit:
    """Remove blobs.

    Prints the digests of those that were removed. There is no way back.

    Parameters
    ----------
    digests
        Addresses of blobs: 64 hex digits each.
    """
    out = Stdout()

    async def remove(blobs: Client, address: Digest) -> None:
        info = await blobs.delete(address)
        if common.json:
            await out.record(_fields(info))
        elif not common.quiet:
            await out.line(str(info.digest))

    return await _each(digests, common, out, remove)


async def ls(start: Annotated[str, Parameter(metavar="START")] = "", /, *, common: Common = UNSET) -> None:
    """List blobs by digest.

    Prints the digest, the size in bytes, and when the blob was stored. With --quiet digests only.
    Lines come as the list is read, so it can be of any length.

    Parameters
    ----------
    start
        Only digests that begin with these hex digits.
    """
    if not _START.fullmatch(start):
        raise UsageError("what digests begin with is up to 64 lower-case hex digits")
    out = Stdout()
    async with blobs_of(common) as blobs:
        async for info in blobs.list(start):
            if common.json:
                await out.record(_fields(info))
            elif common.quiet:
                await out.line(str(info.digest))
            else:
                await out.line(f"{info.digest} {info.size:>14} {_when(info)}".rstrip())
    await out.flush()


def parse(text: str) -> Digest:
    """The digest in an argument; `UsageError` otherwise."""
    try:
        return Digest.parse(text)
    except BadRequestError as error:
        raise UsageError(f"{text[:80]!r} is no digest: that is 64 lower-case hex digits") from error


def _parsed(digests: Sequence[str]) -> list[Digest]:
    if not digests:
        raise UsageError("name at least one digest")
    return [parse(text) for text in digests]


async def _each(
    digests: Sequence[str], common: Common, out: Stdout, work: Callable[[Client, Digest], Awaitable[None]]
) -> Exit:
    """Do the work for each digest. One that is not found is told about, and does not stop the others."""
    result = Exit.OK
    addresses = _parsed(digests)
    async with blobs_of(common) as blobs:
        for address in addresses:
            try:
                await work(blobs, address)
            except BlobNotFoundError:
                result = told(BlobNotFoundError(f"there is no blob {address}"))
            await out.flush()
    return result


def _fields(info: Info) -> dict[str, object]:
    """The blob as JSON has it on the wire."""
    return {
        "digest": str(info.digest),
        "size": info.size,
        "chunks": info.chunks,
        "chunk_size": info.chunk_size,
        "created": info.created,
        "modified": info.modified,
    }


def _described(info: Info) -> list[str]:
    rows = [
        ("digest", str(info.digest)),
        ("size", f"{info.size} ({bytes_of(info.size)})" if info.size >= 1024 else f"{info.size}"),
        ("chunks", f"{info.chunks} of up to {bytes_of(info.chunk_size)}" if info.chunks else "none"),
        ("stored", _when(info) or "unknown"),
    ]
    return [f"{name:<8}{value}" for name, value in rows]


def _when(info: Info) -> str:
    return info.modified.strftime("%Y-%m-%dT%H:%M:%SZ") if info.modified else ""
