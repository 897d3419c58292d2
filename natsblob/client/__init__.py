"""The client SDK. `import natsblob` offers what it has."""

from natsblob.client.client import Client, connect
from natsblob.client.progress import Progress
from natsblob.client.reader import BlobReader
from natsblob.client.sources import BlobSource

__all__ = ["BlobReader", "BlobSource", "Client", "Progress", "connect"]
