"""Blobs in a directory, one file each: durable when acknowledged, and verified before they are read.

The files hold exactly the bytes of the blobs, so `sha256sum` shows each one's name. Any number of
processes may use one directory. `volume` describes what lies where.
"""

from natsblob.store.disk.store import DiskStore

__all__ = ["DiskStore"]
