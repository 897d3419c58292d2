from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natsblob.config import Address, Loaded, decode, encode, load
from natsblob.config.quantity import format_duration, format_size, parse_duration, parse_size
from natsblob.errors import SetupError


class Load(Protocol):
    def __call__(self, flags: Mapping[str, object] | None = None, **environ: str) -> Loaded: ...


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / ".config" / "nats" / "context").mkdir(parents=True)
    return home


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    return cwd


@pytest.fixture
def loaded(home: Path, cwd: Path) -> Load:
    def loaded(flags: Mapping[str, object] | None = None, **environ: str) -> Loaded:
        return load(flags, environ=environ, home=home, cwd=cwd)

    return loaded


def save_context(home: Path, name: str, **fields: object) -> None:
    folder = home / ".config" / "nats"
    (folder / "context" / f"{name}.json").write_text(json.dumps({"description": "", **fields}))


def select_context(home: Path, name: str) -> None:
    (home / ".config" / "nats" / "context.txt").write_text(f"{name}\n")


def test_the_defaults_need_no_file_and_no_home(tmp_path: Path) -> None:
    result = load(environ={}, home=tmp_path / "missing", cwd=tmp_path)
    assert result.settings.server == ("nats://127.0.0.1:4222",)
    assert result.settings.store_dir == tmp_path / "missing/.local/share/natsblob"
    assert {row.source for row in result.show()} == {"default"}


def test_the_defaults_are_in_their_own_ranges(loaded: Load) -> None:
    shown = {
        row.name: row.value for row in loaded().show() if row.value is not None and row.name != "embedded"
    }
    assert loaded(shown).settings == loaded().settings


def test_each_source_outranks_those_before_it(loaded: Load, home: Path, cwd: Path) -> None:
    file = cwd / "natsblob.toml"
    file.write_text(
        'server = "nats://file:1"\nbucket = "file"\nprefix = "file"\ntimeout = 1\nqueue = "file"\n'
    )
    save_context(home, "prod", url="nats://context:1", jetstream_domain="hub")
    environ = {"NATS_URL": "nats://nats:1", "NATS_TIMEOUT": "2s", "NATSBLOB_TIMEOUT": "3s"}
    environ |= {"NATSBLOB_BUCKET": "own", "NATSBLOB_PREFIX": "own"}
    result = loaded({"context": "prod", "prefix": "flag"}, **environ)
    settings, sources = result.settings, result.sources
    assert (settings.queue, sources["queue"]) == ("file", str(file))
    assert (settings.js_domain, sources["js_domain"]) == ("hub", "context prod")
    assert (settings.server, sources["server"]) == (("nats://nats:1",), "NATS_URL")
    assert (settings.timeout, sources["timeout"]) == (3.0, "NATSBLOB_TIMEOUT")
    assert (settings.bucket, sources["bucket"]) == ("own", "NATSBLOB_BUCKET")
    assert (settings.prefix, sources["prefix"]) == ("flag", "--prefix")


def test_what_is_not_given_or_empty_says_nothing(loaded: Load) -> None:
    result = loaded({"bucket": None}, NATSBLOB_BUCKET="", NATS_URL="")
    assert "bucket" not in result.sources
    assert "server" not in result.sources


def test_the_file_is_looked_for_where_users_keep_one(loaded: Load, home: Path, cwd: Path) -> None:
    (home / ".config" / "natsblob").mkdir()
    (home / ".config" / "natsblob" / "config.toml").write_text('bucket = "home"')
    assert loaded().settings.bucket == "home"
    (cwd / "natsblob.toml").write_text('bucket = "cwd"')
    assert loaded().settings.bucket == "cwd"
    (cwd / "variable.toml").write_text('bucket = "variable"')
    assert loaded(NATSBLOB_CONFIG="variable.toml").settings.bucket == "variable"
    (home / "flag.toml").write_text('bucket = "flag"')
    assert loaded({"config": "~/flag.toml"}, NATSBLOB_CONFIG="variable.toml").settings.bucket == "flag"


@pytest.mark.parametrize("text", [None, "bucket = ", b"\xff", 'bukket = "x"', "[bucket]\nname = 'x'"])
def test_a_file_that_was_named_has_to_be_good(loaded: Load, cwd: Path, text: str | bytes | None) -> None:
    path = cwd / "named.toml"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SetupError):
        loaded({"config": path})


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(loaded: Load, home: Path, cwd: Path) -> None:
    (cwd / "natsblob.toml").write_bytes(b'\xef\xbb\xbfbucket = "b"\r\nprefix = "p"\r\n')
    (home / ".config/nats/context/x.json").write_bytes(b'\xef\xbb\xbf{"url": "nats://a:1"}\r\n')
    settings = loaded({"context": "x"}).settings
    assert (settings.bucket, settings.prefix, settings.server) == ("b", "p", ("nats://a:1",))


@pytest.mark.parametrize("kind", ["directory", "pipe", "huge", "deep", "socket"])
def test_a_file_that_is_none_is_refused_at_once(loaded: Load, cwd: Path, kind: str) -> None:
    path = cwd / "named.toml"
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "huge":
            path.write_bytes(b"#" * 2_000_000)
        case "deep":
            path.write_bytes(b"a = " + b"[" * 100_000)
        case "socket":
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(path))
    with pytest.raises(SetupError) as caught:
        loaded({"config": path})
    assert str(path) in caught.value.message


def test_a_pipe_that_somebody_writes_into_is_a_file_like_any_other(loaded: Load) -> None:
    ours, theirs = os.pipe()

    def write() -> None:
        os.write(theirs, b'bucket = "piped"')
        os.close(theirs)

    writer = threading.Timer(0.1, write)
    writer.start()
    assert loaded({"config": f"/dev/fd/{ours}"}).settings.bucket == "piped"
    writer.join()
    os.close(ours)


def test_a_current_directory_that_is_gone_matters_to_relative_paths_only(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> Path:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "cwd", gone)
    assert load({"creds": "/a"}, environ={}, home=home).settings.creds == Path("/a")
    for flags in ({"creds": "a"}, {"config": "natsblob.toml"}):
        with pytest.raises(SetupError):
            load(flags, environ={}, home=home)


@pytest.mark.parametrize("name", ["creds", "disk", "bucket", "server", "metrics"])
@pytest.mark.parametrize("value", ["", "a\0b"])
def test_what_is_empty_or_has_a_zero_byte_is_refused(loaded: Load, name: str, value: str) -> None:
    with pytest.raises(SetupError):
        loaded({"user": "u", name: value})


def test_only_paths_may_be_other_than_unicode(loaded: Load) -> None:
    settings = loaded({"disk": "/d\udcff", "creds": "/c\udcff"}).settings
    assert decode(encode(settings)) == settings
    for name in ("user", "bucket", "server", "context", "metrics"):
        with pytest.raises(SetupError) as caught:
            loaded({name: "a\udcff"})
        caught.value.message.encode()


def test_paths_are_relative_to_where_they_were_written(loaded: Load, home: Path, cwd: Path) -> None:
    (cwd / "sub").mkdir()
    (cwd / "sub" / "a.toml").write_text('creds = "worker.creds"\ntls_ca = "~/ca.pem"\ndisk = "/data"')
    settings = loaded({"config": "sub/a.toml", "store_dir": Path("here")}).settings
    assert settings.creds == cwd / "sub" / "worker.creds"
    assert settings.tls_ca == home / "ca.pem"
    assert settings.disk == Path("/data")
    assert settings.store_dir == cwd / "here"


def test_values_are_read_as_people_write_them(loaded: Load) -> None:
    settings = loaded(
        {"chunk_size": 131072, "reply_prefixes": ["_INBOX.", "_R_.", "tenant.inbox."]},
        NATSBLOB_WINDOW_BYTES="4MiB",
        NATSBLOB_UPLOAD_EXPIRY="1h30m",
        NATSBLOB_EMBEDDED="true",
        NATSBLOB_METRICS="[::1]:9464",
        NATSBLOB_SERVER="a:4222, tls://b:4223",
        NATSBLOB_REPLICAS="3",
    ).settings
    assert (settings.chunk_size, settings.window_bytes) == (131072, 4 * 1024**2)
    assert settings.upload_expiry == 5400
    assert settings.embedded
    assert settings.metrics == Address("::1", 9464)
    assert str(settings.metrics) == "[::1]:9464"
    assert settings.server == ("nats://a:4222", "tls://b:4223")
    assert settings.replicas == 3
    assert settings.reply_prefixes[2] == "tenant.inbox."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replicas", 0),
        ("replicas", 6),
        ("replicas", True),
        ("replicas", "many"),
        ("timeout", float("nan")),
        ("timeout", "-1s"),
        ("timeout", "5 parsecs"),
        ("max_blob", float("inf")),
        ("chunk_size", "1.5"),
        ("chunk_size", "1 MB2"),
        ("server", ""),
        ("server", "http://host"),
        ("server", "nats://a b"),
        ("server", 4222),
        ("port", 65536),
        ("metrics", "9464"),
        ("metrics", "host:x"),
        ("metrics", "host:65536"),
        ("bucket", "a.b"),
        ("bucket", "a\n"),
        ("prefix", "blob.>"),
        ("prefix", "$JS"),
        ("inbox_prefix", "_INBOX."),
        ("reply_prefixes", []),
        ("reply_prefixes", ["$JS.API."]),
        ("reply_prefixes", "_INBOX"),
        ("storage", "tape"),
        ("embedded", "perhaps"),
        ("disk", 5),
        ("password", ""),
        ("nonsense", "1"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_its_name_and_source(
    loaded: Load, name: str, value: object
) -> None:
    with pytest.raises(SetupError) as caught:
        loaded({name: value})
    assert name in caught.value.message
    assert f"--{name.replace('_', '-')}" in caught.value.message


@pytest.mark.parametrize(
    "flags",
    [
        {"creds": "a", "nkey": "b"},
        {"user": "a", "token": "b"},
        {"password": "a"},
        {"storage_password": "a"},
        {"storage_creds": "a", "storage_user": "b"},
        {"tls_cert": "a"},
        {"tls_key": "a"},
        {"backend": "disk"},
        {"backend": "memory", "disk": "a"},
        {"chunk_size": "16MiB", "window_bytes": "8MiB"},
        {"embedded": True, "server": "a:1"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(loaded: Load, flags: dict[str, object]) -> None:
    with pytest.raises(SetupError):
        loaded(flags)


def test_a_directory_chooses_the_disk_backend(loaded: Load, cwd: Path) -> None:
    result = loaded({"disk": "blobs"})
    assert (result.settings.backend, result.settings.disk) == ("disk", cwd / "blobs")
    assert result.sources["backend"] == "--disk"


def test_a_slip_in_a_variable_is_noticed_and_foreign_variables_are_not_ours(loaded: Load) -> None:
    with pytest.raises(SetupError):
        loaded(NATSBLOB_REPLICSA="3")
    # What Kubernetes sets for a Service called natsblob, and a variable of somebody else.
    kubernetes = {"PORT": "tcp://10.0.0.1:80", "PORT_80_TCP_ADDR": "10.0.0.1", "SERVICE_HOST": "10.0.0.1"}
    kubernetes |= {"SERVICE_PORT": "80", "DASHBOARD": "x"}
    environ = {f"NATSBLOB_{name}": value for name, value in kubernetes.items()}
    assert "port" not in loaded(None, **environ).sources


def test_a_stronger_way_to_log_in_replaces_a_weaker_one(loaded: Load, home: Path) -> None:
    save_context(home, "prod", url="nats://prod:4222", user="u", password="p")
    settings = loaded({"context": "prod"}, NATS_CREDS="/my.creds").settings
    assert (settings.creds, settings.user, settings.password) == (Path("/my.creds"), None, None)
    settings = loaded({"context": "prod", "user": "other"}, NATS_CREDS="/my.creds").settings
    assert (settings.creds, settings.user, settings.password) == (None, "other", None)


def test_a_password_may_come_from_elsewhere_than_its_user(loaded: Load, cwd: Path) -> None:
    (cwd / "natsblob.toml").write_text('user = "u"')
    settings = loaded(NATSBLOB_PASSWORD="p").settings
    assert (settings.user, settings.password) == ("u", "p")
    settings = loaded({"user": "v"}, NATSBLOB_PASSWORD="p").settings
    assert (settings.user, settings.password) == ("v", "p")


def test_a_password_alone_does_no_harm_to_an_address_that_has_its_own(loaded: Load) -> None:
    settings = loaded({"server": "nats://u:p@host:4222"}, NATSBLOB_PASSWORD="p").settings
    assert settings.server == ("nats://u:p@host:4222",)
    with pytest.raises(SetupError):
        loaded({"server": "nats://u:p@host:4222", "creds": "a", "password": "p"})


def test_to_nats_a_user_without_a_password_is_a_token(loaded: Load) -> None:
    assert loaded(NATS_USER="t").settings.token == "t"
    settings = loaded(NATS_USER="u", NATS_PASSWORD="p").settings
    assert (settings.user, settings.password, settings.token) == ("u", "p", None)


def test_a_context_gives_the_whole_connection(loaded: Load, home: Path) -> None:
    save_context(
        home,
        "prod",
        url="nats://a:1,nats://b:2",
        creds="~/prod.creds",
        ca="/ca.pem",
        cert="/cert.pem",
        key="/key.pem",
        tls_first=True,
        inbox_prefix="_INBOX_me",
        jetstream_domain="hub",
        color_scheme="",
    )
    result = loaded(NATSBLOB_CONTEXT="prod", NATS_CONTEXT="other")
    settings = result.settings
    assert settings.server == ("nats://a:1", "nats://b:2")
    assert settings.creds == home / "prod.creds"
    assert (settings.tls_ca, settings.tls_cert) == (Path("/ca.pem"), Path("/cert.pem"))
    assert settings.tls_first
    assert (settings.inbox_prefix, settings.js_domain) == ("_INBOX_me", "hub")
    assert result.sources["creds"] == "context prod"


def test_contexts_lie_under_the_configured_home(loaded: Load, tmp_path: Path) -> None:
    folder = tmp_path / "xdg" / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text('{"url": "nats://xdg:1"}')
    settings = loaded({"context": "x"}, XDG_CONFIG_HOME=str(tmp_path / "xdg")).settings
    assert settings.server == ("nats://xdg:1",)


def test_the_selected_context_counts_only_where_nothing_else_names_a_server(loaded: Load, home: Path) -> None:
    save_context(home, "laptop", url="nats://laptop:4222", user="me", password="secret")
    select_context(home, "laptop")
    assert loaded().settings.user == "me"
    assert loaded(NATS_URL="nats://elsewhere:4222").settings.user is None
    assert loaded({"embedded": True}).settings.user is None


@pytest.mark.parametrize(
    "content",
    [
        None,
        "not JSON",
        "[]",
        '{"url": 5}',
        '{"nsc": "nsc://a/b/c"}',
        '{"creds": "nsc://a/b/c"}',
        '{"socks_proxy": "x"}',
        '{"user_jwt": "x"}',
    ],
)
def test_a_context_that_cannot_be_used_is_refused(loaded: Load, home: Path, content: str | None) -> None:
    if content is not None:
        (home / ".config/nats/context/x.json").write_text(content)
    with pytest.raises(SetupError):
        loaded({"context": "x"})


def test_a_context_may_refer_to_variables_and_files(loaded: Load, home: Path) -> None:
    (home / "secret").write_text("hunter2\r\n")
    save_context(
        home,
        "refers",
        url="nats://a:1",
        user="env://WHO",
        password="file://~/secret",
        ca="$CERTS/ca.pem",
        cert="file://${CERTS}/cert.pem",
        key="~/key.pem",
        jetstream_api_prefix="$JS.hub.API",
        nkey=None,
    )
    settings = loaded({"context": "refers"}, WHO="me", CERTS="/certs").settings
    assert (settings.user, settings.password) == ("me", "hunter2")
    assert (settings.tls_ca, settings.tls_cert) == (Path("/certs/ca.pem"), Path("/certs/cert.pem"))
    assert (settings.tls_key, settings.js_domain) == (home / "key.pem", "hub")


@pytest.mark.parametrize(
    "fields",
    [
        {"creds": "nsc://o/a/u"},
        {"creds": "op://vault/item/creds"},
        {"creds": "env://CREDS"},
        {"creds": "data:;base64,eA=="},
        {"creds": "$UNSET/user.creds"},
        {"nkey": "op://vault/item/seed"},
        {"password": "op://vault/item/password", "user": "u"},
        {"password": "file:///nonexistent", "user": "u"},
        {"token": "env://UNSET"},
        {"token": "env://"},
        {"jetstream_api_prefix": "other.API"},
        {"windows_cert_store": "user"},
        {"user": "u", "password": "p", "creds": "/a.creds"},
        {"url": "nats://::1:4222"},
        {"url": "ws://host"},
    ],
)
def test_a_reference_that_is_not_resolved_is_refused_by_name(
    loaded: Load, home: Path, fields: dict[str, str]
) -> None:
    save_context(home, "refers", **{"url": "nats://a:1", **fields})
    with pytest.raises(SetupError) as caught:
        loaded({"context": "refers"}, CREDS="hunter2")
    assert "refers" in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "content", [b"", b"\xef\xbb\xbf{", b"\xff\xfe{\x00}\x00", b"[" * 100_000, b" " * 2_000_000]
)
def test_files_that_are_no_contexts_are_refused(loaded: Load, home: Path, content: bytes) -> None:
    (home / ".config/nats/context/x.json").write_bytes(content)
    with pytest.raises(SetupError):
        loaded({"context": "x"})


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "a\\b"])
def test_the_name_of_a_context_is_no_path(loaded: Load, home: Path, name: str) -> None:
    (home / ".config/nats/x.json").write_text("{}")
    with pytest.raises(SetupError):
        loaded({"context": name})


def test_secrets_are_shown_nowhere(loaded: Load) -> None:
    result = loaded(
        {
            "user": "u",
            "password": "hunter2",
            "storage_token": "hunter2",
            "server": "nats://x:hunter2@host:1,b:2",
        }
    )
    assert result.settings.password == "hunter2"
    shown = {row.name: row.value for row in result.show()}
    assert shown["server"] == "nats://***@host:1,nats://b:2"
    assert shown["password"] == shown["storage_token"] == "***"
    assert "hunter2" not in repr(result)
    with pytest.raises(SetupError) as caught:
        loaded({"server": "nats://x:hunter2@host 1"})
    assert "hunter2" not in str(caught.value)


def test_settings_pass_through_a_pipe_whole(loaded: Load) -> None:
    settings = loaded({"user": "u", "password": "hunter2", "metrics": "127.0.0.1:0", "disk": "/d"}).settings
    assert decode(encode(settings)) == settings


def test_the_storage_side_has_what_is_set_for_it_and_the_rest_as_it_is(loaded: Load) -> None:
    base = {"server": "a:1", "user": "u", "password": "p", "js_domain": "hub"}
    assert loaded(base).settings.for_storage().server == ("nats://a:1",)
    assert loaded(base).settings.for_storage().password == "p"
    storage = loaded({**base, "storage_server": "b:2", "storage_creds": "/s.creds"}).settings.for_storage()
    assert (storage.server, storage.js_domain) == (("nats://b:2",), "hub")
    assert (storage.creds, storage.user, storage.password) == (Path("/s.creds"), None, None)


def test_the_embedded_server_is_reached_without_credentials(loaded: Load) -> None:
    given = {"creds": "/a", "storage_server": "b:2", "tls_ca": "/ca", "tls_first": True, "embedded": True}
    settings = loaded(given).settings.on_embedded("nats://127.0.0.1:5000")
    assert settings.server == settings.for_storage().server == ("nats://127.0.0.1:5000",)
    assert (settings.creds, settings.tls_ca, settings.tls_first) == (None, None, False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("1.5h", 5400), ("2d", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("10", 10),
        ("8MiB", 8 * 2**20),
        ("8 mib", 8 * 2**20),
        ("1GB", 10**9),
        ("1.5k", 1536),
        ("2T", 2**41),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.text())
def test_any_other_text_is_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except ValueError:
            continue


@given(st.integers(0, 2**60), st.integers(0, 10**9))
def test_what_is_written_is_read_back(size: int, milliseconds: int) -> None:
    assert parse_size(format_size(size)) == size
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000
