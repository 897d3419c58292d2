"""The Python SDK in one screen: `natsblob serve --embedded` in one terminal, this in another."""

import asyncio
import sys
import tempfile
from pathlib import Path

import natsblob


async def tour(server: str, photo: Path) -> None:
    async with natsblob.connect(server) as blobs:
        # Small or large, from memory, a file or a stream: the address is the SHA-256 of the bytes.
        info = await blobs.put(b"hello, blobs")
        print("put      ", info.digest, "created" if info.created else "was there already")
        print("get      ", await blobs.get(info.digest))
        print("a range  ", await blobs.get(info.digest, offset=7, length=5))

        info = await blobs.put(photo, progress=lambda done, total: print("  sent   ", done, "of", total))

        # Verified before the file has its name; interrupted, the next one goes on from there.
        await blobs.download(info.digest, photo.with_name("copy.raw"))

        # As a file: what comes next is on its way while you work on what is there.
        async with blobs.open(info.digest) as reader:
            reader.seek(-256, 2)
            print("the end  ", len(await reader.read()), "bytes of", reader.size)

        nowhere = natsblob.Digest.of(b"never put")
        print("has      ", await blobs.has(info.digest), await blobs.has(nowhere))
        print("missing  ", await blobs.missing([info.digest, nowhere]))
        try:
            await blobs.get(nowhere)
        except natsblob.BlobNotFoundError as error:
            print("not found", error)


def main(server: str = "nats://127.0.0.1:4222") -> None:
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.raw")
        photo.write_bytes(bytes(range(256)) * 80_000)
        asyncio.run(tour(server, photo))
        print("same     ", photo.read_bytes() == Path(folder, "copy.raw").read_bytes())


main(*sys.argv[1:])
