"""What `docs/protocol.md` allows as the answer to a request, without natsblob's own decoders."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.fuzz.link import Answer

OK: Final = "ok"
BAD: Final = "bad_request"
_MOST: Final = 2**53
_DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "protocol.md"
_ROW: Final = re.compile(r"^\| (\d{3}) \| `(\w+)` \| .* \| (yes|no)[^|]*\|", re.MULTILINE)
_INTERNAL: Final = re.compile(
    r"Traceback|Error\(|<[a-z_.]+ object| at 0x|\.py\b|/(usr|home|tmp|root)/|site-packages|nats:|natsblob\."
)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LEAST_CHUNK: Final = 4096
_EMPTY: Final = hashlib.sha256().hexdigest()
_UPLOAD: Final = re.compile(r"[0-9A-Za-z]{22}")

Check = Callable[[Answer], str]
"""What is wrong with an answer that is no error; empty where nothing is."""


def table() -> dict[str, tuple[int, bool]]:
    """Code and `retryable` of each error name, as the document has them."""
    rows = _ROW.findall(_DOCUMENT.read_text())
    return {name: (int(code), retryable == "yes") for code, name, retryable in rows}


@dataclass(frozen=True)
class World:
    """What is known of the service beforehand."""

    known: dict[str, bytes]
    """Blobs by digest that are stored and that nobody deletes. The last is too large for one message."""
    pool: dict[str, bytes]
    """Blobs by digest that are put and deleted all the time."""
    caps: dict[str, Any]
    errors: dict[str, tuple[int, bool]] = field(default_factory=table)

    def content(self, digest: str) -> bytes | None:
        """What is stored under a digest, or may be."""
        return self.known.get(digest, self.pool.get(digest))


class Expected(NamedTuple):
    """The names that an answer may have, `ok` among them, and what is then looked at."""

    names: frozenset[str]
    check: Check
    framed: bool = False
    """Whether frames come, the last of which is an end frame or an error."""


class MalformedError(Exception):
    """No request of that endpoint."""


def expected(world: World, endpoint: str, body: bytes, digest_header: str | None) -> Expected:
    """What may be answered to a request with this body, whose header block is in order."""
    try:
        return _READERS[endpoint](world, body, digest_header)
    except MalformedError:
        return only(BAD)
    except RepeatedError:
        return anything(only(BAD), framed=endpoint == "get")


def only(*names: str, check: Check = lambda _: "", framed: bool = False) -> Expected:
    return Expected(frozenset(names), check, framed)


def anything(awaited: Expected, *, framed: bool = False) -> Expected:
    """For requests of which it is not said whether they are in order: any answer that a client may cause."""
    names = {OK, BAD, "blob_not_found", "bad_range", "too_large", "digest_mismatch", "upload_expired"}
    return Expected(awaited.names | names | {"unavailable"}, lambda _: "", framed or awaited.framed)


def judged_error(world: World, answer: Answer) -> tuple[str, str]:
    """The name of an error reply, and what is wrong with it as a message."""
    try:
        error = json.loads(answer.data)["error"]
        name, message = error["name"], error["message"]
        said = (error["code"], error["retryable"])
    except (ValueError, KeyError, TypeError):
        return "", "an error reply without the body of one"
    if world.errors.get(name) != said:
        return name, f"{name} {said} is not in the table"
    if answer.headers.get("Nats-Service-Error-Code") != str(error["code"]):
        return name, "the code of the header is another one"
    if answer.headers.get("Nats-Service-Error") != message or not message.isprintable():
        return name, "the message of the header is another one, or does not fit a line"
    if _INTERNAL.search(answer.data.decode()):
        return name, f"something internal: {message}"
    if name == "busy" and error["details"].get("retry_after_ms", 0) <= 0:
        return name, "busy without a time to come back"
    return name, ""


class RepeatedError(Exception):
    """JSON with a key twice: the last one counts, but the others may be looked at too."""


def parsed(body: bytes) -> Any:
    """The JSON in a body. Where it is no UTF-8 it may be refused, or what is unknown in it ignored."""

    def refuse(text: str) -> None:
        raise MalformedError(text)

    def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise RepeatedError
        return dict(pairs)

    try:
        return json.loads(
            body.decode("utf-8", "replace"),
            parse_constant=refuse,
            parse_float=_Float,
            object_pairs_hook=fields,
        )
    except (ValueError, RecursionError) as error:
        raise MalformedError from error


class _Float(float):
    """Whatever has a point or an exponent is no whole number here, however large it is."""


def doubtful(body: bytes) -> bool:
    """Whether a decoder may refuse the JSON although all known fields are right, or the other way round."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return True
    return body.count(b"[") + body.count(b"{") > 500 or b"\\u" in body or len(body) > 4000


def _object(body: bytes) -> dict[str, Any]:
    value = parsed(body)
    if not isinstance(value, dict):
        raise MalformedError
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise MalformedError
    return value


def _body_digest(body: bytes) -> str:
    return _digest(body.decode("latin-1"))


def _number(value: Any, low: int = 0, high: int = _MOST) -> int:
    if type(value) is not int or not low <= value <= high:
        raise MalformedError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise MalformedError
    return value


def _maybe(read: Callable[[Any], Any], request: dict[str, Any], name: str) -> Any:
    return None if request.get(name) is None else read(request[name])


def _presence(world: World, digest: str, check: Check, *, framed: bool = False) -> Expected:
    """`ok` for what is stored, 404 for what is not, either for what comes and goes."""
    if digest in world.known:
        return only(OK, check=check, framed=framed)
    if digest in world.pool:
        return only(OK, "blob_not_found", check=check, framed=framed)
    return only("blob_not_found", framed=framed)


def _is_info(world: World, digest: str) -> Check:
    def check(answer: Answer) -> str:
        info = json.loads(answer.data)
        right = (digest, len(world.content(digest) or b""))
        return "" if (info["digest"], info["size"]) == right else "info of another blob"

    return check


def _put(world: World, body: bytes, digest_header: str | None) -> Expected:
    digest = hashlib.sha256(body).hexdigest()
    if digest_header is not None and not _DIGEST.fullmatch(digest_header):
        return only(BAD)
    if digest_header is not None and digest_header != digest:
        return only("digest_mismatch")

    def check(answer: Answer) -> str:
        info = json.loads(answer.data)
        return "" if (info["digest"], info["size"]) == (digest, len(body)) else "info of another blob"

    # Somebody else may delete it at the same time.
    return only(OK, *({"unavailable"} if digest in world.pool else ()), check=check)


def _get(world: World, body: bytes, _: str | None) -> Expected:
    if not body.lstrip().startswith(b"{"):
        return _whole(world, _body_digest(body), 0, None)
    request = _object(body)
    digest = _digest(request.get("digest"))
    mode, verify = request.get("mode", "whole"), request.get("verify", False)
    offset, length = (_maybe(_number, request, name) for name in ("offset", "length"))
    first, count = _number(request.get("first", 0)), _number(request.get("count", 1), 1, 2**32)
    if mode not in ("whole", "stream") or not isinstance(verify, bool):
        raise MalformedError
    if mode == "whole":
        return _whole(world, digest, offset or 0, length)
    if count > world.caps["window"]:
        raise MalformedError
    data = world.content(digest)
    size = world.caps["chunk_size"]
    if data and first >= -(-len(data) // size):
        return only(
            *{"bad_range", "blob_not_found"} - ({"blob_not_found"} & _sure(world, digest)), framed=True
        )

    def check(answer: Answer) -> str:
        index = int(answer.headers["Blob-Chunk"])
        wanted = (data or b"")[index * size :][:size]
        return "" if first <= index < first + count and answer.data == wanted else "another chunk"

    return _presence(world, digest, check, framed=True)


def _sure(world: World, digest: str) -> set[str]:
    return {"blob_not_found"} if digest in world.known else set()


def _whole(world: World, digest: str, offset: int, length: int | None) -> Expected:
    data = world.content(digest)
    if data is None:
        return only("blob_not_found")
    if offset > len(data):
        return only(*{"bad_range", "blob_not_found"} - _sure(world, digest))
    wanted = data[offset:] if length is None else data[offset : offset + length]
    if len(wanted) > world.caps["max_inline"]:
        return only(*{"too_large", "blob_not_found"} - _sure(world, digest))
    return _presence(world, digest, lambda answer: "" if answer.data == wanted else "other bytes")


def _has(world: World, body: bytes, _: str | None) -> Expected:
    if not body.lstrip().startswith(b"["):
        digest = _body_digest(body)

        def exists(answer: Answer) -> str:
            found = json.loads(answer.data)["exists"]
            sure = digest not in world.pool
            return "wrong about it" if sure and found != (digest in world.known) else ""

        return only(OK, check=exists)
    digests = parsed(body)
    if not isinstance(digests, list) or len(digests) > world.caps["max_batch"]:
        raise MalformedError
    for digest in digests:
        _digest(digest)

    def missing(answer: Answer) -> str:
        said = [digest for digest in json.loads(answer.data)["missing"] if digest not in world.pool]
        right = [digest for digest in digests if digest not in world.pool and digest not in world.known]
        return "" if said == right else "wrong about what is missing"

    return only(OK, check=missing)


def _stat(world: World, body: bytes, _: str | None) -> Expected:
    digest = _body_digest(body)
    return _presence(world, digest, _is_info(world, digest))


def _list(world: World, body: bytes, _: str | None) -> Expected:
    request = _object(body or b"{}")
    after = _maybe(_digest, request, "after")
    limit = _number(request.get("limit", 1000), 1, 1000)
    prefix = _text(request.get("prefix", ""))
    if not re.fullmatch(r"[0-9a-f]{0,64}", prefix):
        raise MalformedError

    def check(answer: Answer) -> str:
        digests = [info["digest"] for info in json.loads(answer.data)["blobs"]]
        right = all(digest.startswith(prefix) and (after is None or digest > after) for digest in digests)
        return "" if right and len(digests) <= limit and digests == sorted(digests) else "no such page"

    return only(OK, check=check)


def _caps(world: World, body: bytes, _: str | None) -> Expected:
    return only(OK, check=lambda answer: "" if json.loads(answer.data) == world.caps else "other caps")


def _open(world: World, body: bytes, _: str | None) -> Expected:
    request = _object(body or b"{}")
    digest, size = _maybe(_digest, request, "digest"), _maybe(_number, request, "size")
    _maybe(_text, request, "upload")
    _maybe(lambda value: _number(value, _LEAST_CHUNK), request, "max_chunk")
    if not isinstance(request.get("relayed", False), bool):
        raise MalformedError
    if size is not None and size > world.caps["max_blob"]:
        return only("too_large")

    def check(answer: Answer) -> str:
        fields = json.loads(answer.data)
        if digest in world.known:
            return "" if fields.get("digest") == digest else "an upload of what is there"
        return "" if "upload" in fields or digest in world.pool else "no upload"

    unknown = {"upload_expired"} if request.get("upload") is not None else set[str]()
    return only(OK, *unknown, check=check)


def _status(world: World, body: bytes, _: str | None) -> Expected:
    _text(_object(body).get("upload"))
    return only("upload_expired")


def _commit(world: World, body: bytes, _: str | None) -> Expected:
    request = _object(body)
    _text(request.get("upload"))
    size, digest = _number(request.get("size")), _maybe(_digest, request, "digest")
    _number(request.get("chunks"))
    marks = request.get("marks")
    if marks is not None:
        if not isinstance(marks, dict) or not isinstance(marks.get("seqs"), list):
            raise MalformedError
        _number(marks.get("every"), 1, 2**32)
        if len(marks["seqs"]) > 4096:
            raise MalformedError
        for seq in marks["seqs"]:
            _number(seq)
    if size > world.caps["max_blob"]:
        return only("too_large")
    # An upload of nothing leaves nothing by which it would be known. Once somebody has committed one under
    # this name, that is what further commits are held to.
    nothing = size == 0 and digest in (None, _EMPTY)
    return only(
        "upload_expired", "digest_mismatch", *({OK} if nothing else ()), check=_is_info(world, _EMPTY)
    )


def _abort(world: World, body: bytes, _: str | None) -> Expected:
    upload = _text(_object(body).get("upload"))
    if not _UPLOAD.fullmatch(upload):
        return only("upload_expired")
    # 408 where the collector removes what was recorded of it, just when it is asked for.
    return only(OK, "upload_expired", check=lambda answer: "not empty" if answer.data else "")


_READERS: Final[dict[str, Callable[[World, bytes, str | None], Expected]]] = {
    "put": _put,
    "get": _get,
    "has": _has,
    "stat": _stat,
    "list": _list,
    "delete": _stat,
    "caps": _caps,
    "put.open": _open,
    "put.status": _status,
    "put.commit": _commit,
    "put.abort": _abort,
}
ENDPOINTS: Final = tuple(_READERS)
