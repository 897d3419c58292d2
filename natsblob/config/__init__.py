"""The settings of natsblob: one model, one meaning of each name in every source, checked once.

A setting `chunk_size` is `chunk_size` in the TOML file, `NATSBLOB_CHUNK_SIZE` in the environment and
`--chunk-size` on the command line. `load` says which source outranks which.
"""

from __future__ import annotations

from natsblob.config.load import Loaded, Shown, load
from natsblob.config.model import Address, Settings, decode, encode

__all__ = ["Address", "Loaded", "Settings", "Shown", "decode", "encode", "load"]
