"""Are there known vulnerabilities in what constraints.txt pins, and is what is installed what it pins?

The first is asked of OSV (https://osv.dev), which gathers the advisories of PyPI and GitHub, in one request.
Where it cannot be reached that is said, and is no failure: a build without a network is no worse than
before. A finding is one, and so is a package that is installed in another version or without being pinned.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SERVICE = "https://api.osv.dev/v1/querybatch"
TIMEOUT = 20.0
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
OURS = {"natsblob", "pip", "setuptools", "wheel"}
"""The project itself, and what Python puts into every new environment."""


def pinned(text: str) -> dict[str, str]:
    """Versions by name, as `name==version` lines have them."""
    lines = (line.partition("#")[0].split(";")[0].strip() for line in text.splitlines())
    found = (line.partition("==") for line in lines if line)
    return {normal(name): version.strip() for name, _, version in found}


def normal(name: str) -> str:
    """The name as indexes write it: PEP 503."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def installed() -> dict[str, str]:
    """Versions by name of all that this interpreter can import."""
    return {normal(found.name): found.version for found in importlib.metadata.distributions()}


def strangers(pins: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """What is installed and not pinned so."""
    return [
        f"{name} {version} is installed, and {pins.get(name, 'no version')} is pinned"
        for name, version in sorted(present.items())
        if name not in OURS and pins.get(name) != version
    ]


def findings(pins: Mapping[str, str], answer: Any) -> list[str]:
    """The advisories in OSV's answer, which has one result for each query, in order."""
    results = answer["results"]
    if len(results) != len(pins):
        raise ValueError(f"{len(results)} results for {len(pins)} packages")
    return [
        f"{name} {version}: {advisory['id']}, see https://osv.dev/vulnerability/{advisory['id']}"
        for (name, version), result in zip(pins.items(), results, strict=True)
        for advisory in result.get("vulns", [])
    ]


def ask(pins: Mapping[str, str]) -> Any:
    queries = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in pins.items()
    ]
    request = urllib.request.Request(
        SERVICE, json.dumps({"queries": queries}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:  # noqa: S310 - a constant address
        return json.load(reply)


def main() -> int:
    """0 where nothing is found, also because the service could not be reached; else 1."""
    pins = pinned(CONSTRAINTS.read_text())
    wrong = strangers(pins, installed())
    try:
        wrong += findings(pins, ask(pins))
        asked = f"{len(pins)} packages looked up at OSV"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", None) or error
        asked = f"NOT looked up for vulnerabilities, as {SERVICE} gave no answer: {reason!r}"
    for line in wrong:
        print(line)
    print(f"audit: {len(wrong)} findings; {asked}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
