"""Put, get and ask for a blob with nothing but a NATS library."""

import asyncio
import json
import os

import nats


async def main() -> None:
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    put = await nc.request("blob.put", b"hello, blob", timeout=5)
    digest = json.loads(put.data)["digest"].encode()
    got = await nc.request("blob.get", digest, timeout=5)
    has = await nc.request("blob.has", digest, timeout=5)
    for reply in (put, got, has):  # an error is a reply with a header Nats-Service-Error-Code
        print(reply.data.decode())
    await nc.close()


asyncio.run(main())
