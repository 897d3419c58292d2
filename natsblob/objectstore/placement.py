"""Why a bucket cannot be had as it was asked for, and what to ask for instead."""

from __future__ import annotations

from natsblob.broker.jetstream import Config
from natsblob.broker.translate import PlacementError
from natsblob.config.quantity import format_size
from natsblob.errors import BlobError, InsufficientStorageError, SetupError

_NO_LIMIT = -1


def explained(error: BlobError, config: Config) -> BlobError:
    """What JetStream said to a stream of this configuration, with advice if the configuration is to blame."""
    match error:
        case PlacementError():
            return SetupError(_where(error, config))
        case InsufficientStorageError():
            return SetupError(_how_much(config))
    return error


def _where(error: BlobError, config: Config) -> str:
    replicas, placement = int(config.get("num_replicas", 1)), config.get("placement")
    if replicas == 1 and not placement:
        return f"no server takes the bucket ({error.message}): look at JetStream with `natsblob doctor`"
    among = " that --cluster and --tag name" if placement else ""
    servers = f"at least {replicas} servers with JetStream{among}" if replicas > 1 else f"a server{among}"
    return (
        f"{replicas} replicas cannot be placed ({error.message}): that needs a cluster of {servers}. "
        f"Start more servers, or ask for {'other ones' if placement else 'fewer replicas'}"
    )


def _how_much(config: Config) -> str:
    """A bucket with a limit has its space set aside, once for each replica; one without needs some at all."""
    storage = config.get("storage", "file")
    other = "file" if storage == "memory" else "memory, which is lost when servers stop"
    size = int(config.get("max_bytes", _NO_LIMIT))
    if size > 0:
        return (
            f"{format_size(size)} for each replica are more than this account or its servers have left in "
            f"{storage} storage: ask for less with --max-bytes, or raise their limits"
        )
    return (
        f"this account or its servers have no {storage} storage left, or none at all: "
        f"raise their limits, or create the bucket with --storage {other}"
    )
