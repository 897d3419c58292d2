"""Namespaces in which a scenario runs: what it mounts, starts and configures ends with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from typing import Final, Literal

Need = Literal["mounts", "namespaces"]
"""Loop-mounted file systems; network namespaces with links between them."""

_PRIVATE: Final = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_LOOPBACK: Final = ("sh", "-c", 'ip link set lo up && exec "$@"', "sh")
_TRY_MOUNT: Final = "set -e; mkdir m; truncate -s 8M i; mkfs.ext4 -q i; mount -o loop i m; umount m"
_TRY_NETWORK: Final = (
    "set -e; mount -t tmpfs none /run; ip netns add a; ip link add x type veth peer name y; "
    "ip link set y netns a; ip link add name hub type bridge"
)


def private() -> list[str]:
    """What a command line begins with to have mounts, network and processes of its own; else nothing."""
    return ["unshare", *_PRIVATE, *_LOOPBACK] if _works("ip link set lo up") else []


def lacks(need: Need) -> str:
    """Why something that a scenario needs is not to be had here; empty where it is."""
    if not private():
        return "this machine lets nobody unshare mounts, network and processes"
    if need == "mounts" and not _works(_TRY_MOUNT):
        return "no loop-mounted ext4 here"
    if need == "namespaces" and not _works(_TRY_NETWORK):
        return "no network namespaces with bridges here"
    return ""


@cache
def _works(script: str) -> bool:
    """Whether a shell script succeeds in namespaces of its own and an empty directory."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    shell = f"cd $(mktemp -d) && trap 'rm -rf \"$PWD\"' EXIT && {script}"
    command = ["unshare", *_PRIVATE, "sh", "-c", shell]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
