"""The audit of dependencies: what it finds fails the build, and what it cannot find out is said."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"
ADVISORY = {"id": "PYSEC-0000-1", "modified": "2026-01-01T00:00:00Z"}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def osv(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], list[Any]]]:
    """A service that answers with these bytes; it keeps what it was asked."""
    asked: list[Any] = []
    answer = b""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing to tell."""

    def answering(data: bytes) -> list[Any]:
        nonlocal answer
        answer = data
        return asked

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setattr(audit, "SERVICE", f"http://127.0.0.1:{server.server_port}/v1/querybatch")
        yield answering
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def two(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two packages are pinned, and installed."""
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# pins\nFirst_One==1.0  # why\nsecond==2.0; python_version > '3'\n")
    monkeypatch.setattr(audit, "CONSTRAINTS", constraints)
    monkeypatch.setattr(audit, "installed", lambda: {"first-one": "1.0", "second": "2.0", "pip": "99"})


def test_an_advisory_fails_the_build(audit: ModuleType, osv: Callable[[bytes], list[Any]]) -> None:
    asked = osv(json.dumps({"results": [{}, {"vulns": [ADVISORY]}]}).encode())
    assert audit.main() == 1
    (query,) = asked
    names = [
        (one["package"]["name"], one["package"]["ecosystem"], one["version"]) for one in query["queries"]
    ]
    assert names == [("first-one", "PyPI", "1.0"), ("second", "PyPI", "2.0")]


def test_without_advisories_the_build_goes_on(audit: ModuleType, osv: Callable[[bytes], list[Any]]) -> None:
    osv(b'{"results": [{}, {}]}')
    assert audit.main() == 0


@pytest.mark.parametrize("nonsense", [b"", b"<html>", b"[]", b"{}", b'{"results": [{}]}', b"\xff"])
def test_an_answer_that_says_nothing_is_told_and_no_finding(
    audit: ModuleType, osv: Callable[[bytes], list[Any]], nonsense: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    osv(nonsense)
    assert audit.main() == 0
    assert audit.SERVICE in capsys.readouterr().out


def test_without_a_network_that_is_told(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "SERVICE", "http://127.0.0.1:1/v1/querybatch")
    assert audit.main() == 0
    assert audit.SERVICE in capsys.readouterr().out


@pytest.mark.parametrize("stranger", [{"second": "2.1"}, {"third": "1"}])
def test_what_is_not_pinned_fails_the_build(
    audit: ModuleType,
    osv: Callable[[bytes], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    stranger: dict[str, str],
) -> None:
    osv(b'{"results": [{}, {}]}')
    monkeypatch.setattr(audit, "installed", lambda: stranger)
    assert audit.main() == 1
