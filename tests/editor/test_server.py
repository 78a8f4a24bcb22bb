"""Access control and responses of the editor's server, over real sockets."""

import http.client
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from oxe_curate.editor import page, server
from oxe_curate.editor.catalogue import Catalogue
from oxe_curate.editor.files import MixtureFile
from oxe_curate.editor.security import HEADERS, Access
from oxe_curate.errors import ConfigError, StorageError
from oxe_curate.mixture import published
from tests.editor.conftest import MIXTURE, start


@pytest.fixture(scope="module")
def running(tmp_path_factory, catalogue):
    path = tmp_path_factory.mktemp("served") / "my.yaml"
    path.write_text(MIXTURE, encoding="utf-8")
    served = start(path, catalogue, allowed=("robots.example:8443", "tunnel.example"))
    yield served
    served.stop()


def ask(served, method, path, body=None, raw=False, **headers):
    """Status, headers and body. Given headers replace those of a well-behaved page; None omits one."""
    own = {
        "Host": f"127.0.0.1:{served.port}",
        "Cookie": f"{served.access.cookie}={served.access.session}",
        "Origin": f"http://127.0.0.1:{served.port}" if method == "POST" else None,
        "Content-Type": "application/json" if method == "POST" else None,
        "Sec-Fetch-Site": "same-origin",
    }
    own |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    data = body if raw or body is None else json.dumps(body).encode()
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in own.items():
        if value is not None:
            connection.putheader(name, value)
    if data is not None and "Content_Length" not in headers:
        connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data)
    response = connection.getresponse()
    found = response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    connection.close()
    return found


GOOD = {"text": MIXTURE}


def test_a_well_behaved_page_is_served(running):
    status, headers, body = ask(running, "POST", "/api/analyse", GOOD)
    assert status == 200
    assert [row["name"] for row in json.loads(body)["rows"]] == ["bridge_dataset", "fractal20220817_data", "jaco_play"]
    for name, value in HEADERS.items():
        assert headers[name.lower()] == value


@pytest.mark.parametrize(
    ("change", "status"),
    [
        # DNS rebinding: another name that resolves to 127.0.0.1
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Host": "127.0.0.1:{port}.evil.example"}, 421),
        ({"Host": "127.0.0.1:{port}@evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "robots.example:8443", "Origin": "https://robots.example:8443"}, 200),
        ({"Host": "robots.example:9999", "Origin": "https://robots.example:9999"}, 421),
        ({"Host": "tunnel.example:9999", "Origin": "http://tunnel.example:9999"}, 200),
        ({"Host": "Tunnel.Example", "Origin": "https://tunnel.example"}, 200),
        # requests sent by another page
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),
        ({"Origin": "http://127.0.0.1:{port}.evil.example"}, 403),
        ({"Origin": "file://127.0.0.1:{port}"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        # without the cookie, or with a wrong one
        ({"Cookie": None}, 401),
        ({"Cookie": "oxe_curate_edit_{port}="}, 401),
        ({"Cookie": "oxe_curate_edit_{port}=guess"}, 401),
        ({"Cookie": "oxe_curate_edit_1={session}"}, 401),
        ({"Cookie": "a=b; oxe_curate_edit_{port}={session}"}, 200),
        ({"Cookie": '"; \\'}, 401),
        # content types that a form can send
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content_Type": None}, 415),
        ({"Content_Type": "application/jsonp"}, 415),
        ({"Content_Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_attacks_are_refused(running, change, status):
    fill = {"port": running.port, "session": running.access.session}
    headers = {name: value and value.format(**fill) for name, value in change.items()}
    got, answered, _ = ask(running, "POST", "/api/analyse", GOOD, **headers)
    assert got == status
    assert answered["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert "access-control-allow-origin" not in answered


def test_reading_needs_the_cookie_too(running):
    for path in ("/", "/main.js", "/api/file", "/api/catalogue", "/api/frame/bridge_dataset"):
        assert ask(running, "GET", path, Cookie=None)[0] == 401
        assert ask(running, "GET", path)[0] == 200
        assert ask(running, "GET", path, Origin="http://evil.example")[0] == 403


def test_the_token_becomes_a_cookie_once(running):
    plain = {"Cookie": None, "Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"}
    status, headers, body = ask(running, "GET", f"/?token={running.access.token}", **plain)
    cookie = headers["set-cookie"]
    assert status == 200
    assert b'http-equiv="refresh"' in body
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/", running.access.session))
    assert running.access.token not in body.decode()
    assert headers["cache-control"] == "no-store"
    for token in ("", "x", running.access.token[:-1], running.access.token + "x", running.access.session):
        status, headers, _ = ask(running, "GET", f"/?token={token}", **plain)
        assert status == 401
        assert "set-cookie" not in headers
    # a link on another page may lead here, but without the cookie
    assert ask(running, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate", Cookie=None)[0] == 401
    assert ask(running, "GET", "/main.js", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_refused(running, method):
    assert ask(running, method, "/api/file")[0] in (400, 405)


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "//etc/passwd", "/static/app.js", "/vendor/../main.js",
        "/vendor/%2e%2e/%2e%2e/server.py", "/vendor/LICENSES.txt", "/__init__.py", "/main.js/", "/main.js%00",
        "/api/frame/..", "/api/frame/%2e%2e", "/api/frame/..%2f..%2fetc", "/api/frame/nowhere",
        "/api/frame/viola", "/api/frame/nyu_door_opening_surprising_effectiveness",
        "/api/frame/bridge_dataset/primary/0/0/99999", "/api/frame/bridge_dataset/primary/99/0/0",
        "/api/frame/bridge_dataset/primary/0/9999/0", "/api/frame/bridge_dataset/primary/0/-1/0",
        "/api/frame/bridge_dataset/wrist/0/0/0", "/api/frame/bridge_dataset/..%2f/0/0/0",
        "/api/frame/bridge_dataset?h=100000", "/api/frame/bridge_dataset?h=x",
    ],
)  # fmt: skip
def test_no_file_is_opened_by_the_path_of_a_request(running, path):
    status, _, body = ask(running, "GET", path)
    assert status == 404
    assert b"root:" not in body


def test_frames_are_jpegs(running):
    for path in ("/api/frame/bridge_dataset", "/api/frame/bridge_dataset/secondary/0/0/3?h=144"):
        status, headers, body = ask(running, "GET", path)
        assert status == 200
        assert headers["content-type"] == "image/jpeg"
        assert body.startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/analyse", b"", 400),
        ("/api/analyse", b"{", 400),
        ("/api/analyse", b"[]", 400),
        ("/api/analyse", b'"text"', 400),
        ("/api/analyse", b"[" * 100_000, 400),
        ("/api/analyse", b"\xff\xfe", 400),
        ("/api/analyse", b"{}", 422),
        ("/api/analyse", b'{"text": 1}', 422),
        ("/api/analyse", b'{"text": "", "samples": -1}', 422),
        ("/api/analyse", b'{"text": "", "samples": true}', 422),
        ("/api/analyse", b'{"text": "", "samples": NaN}', 422),
        ("/api/edit", b'{"text": "a: 1"}', 422),
        ("/api/edit", b'{"text": "a: 1", "operation": {"op": "format"}}', 422),
        ("/api/edit", b'{"text": "a: 1", "operation": {"op": "set", "path": ["x"], "value": 1}}', 422),
        ("/api/edit", b'{"text": "a: 1", "operation": {"op": "set", "path": [], "value": 1}}', 422),
        ("/api/edit", b'{"text": "a: 1", "operation": {"op": "remove", "rows": [7]}}', 422),
        ("/api/edit", b'{"text": "a: 1", "operation": {"op": "quantity", "row": 0}}', 422),
        ("/api/dataset", b'{"dataset": "../../etc"}', 422),
        ("/api/dataset", b"{}", 422),
        ("/api/histograms", b"{}", 422),
        ("/api/histograms", b'{"datasets": ["bridge_dataset"], "low": "x"}', 422),
        ("/api/samples", b'{"text": "name: x", "offset": "x"}', 422),
        ("/api/samples", b'{"text": "name: x", "offset": Infinity}', 422),
        ("/api/propose", b'{"text": "name: x", "method": "diversity"}', 422),
        ("/api/histograms", b'{"datasets": []}', 422),
        ("/api/histograms", b'{"datasets": ["bridge_dataset"], "low": 2}', 422),
        ("/api/samples", b'{"text": "name: x"}', 422),
        ("/api/save", b'{"text": 3}', 422),
        ("/api/save", b'{"text": "\\ud800"}', 422),
        ("/api/samples", b'{"text": "name: x", "offset": 1' + b"0" * 400 + b"}", 422),
        ("/api/analyse", b'{"text": "", "samples": 1' + b"0" * 400 + b"}", 422),
        ("/api/analyse", b'{"text": "", "samples": 1' + b"0" * 5000 + b"}", 400),
        ("/api/edit", b'{"text": "name: m", "operation": {"op": "set", "path": ["seed"], "value": {}}}', 422),
        (
            "/api/edit",
            b'{"text": "a: 1", "operation": {"op": "add", "datasets": {"' + b"x" * 10**6 + b'": 1e999}}}',
            422,
        ),
        ("/api/edit", b'{"text": "name: m", "operation": {"op": "remove", "rows": [1e999]}}', 422),
        ("/api/dataset", b'{"dataset": "' + b"x" * 10**6 + b'"}', 422),
    ],
    ids=range(36),
)
def test_malformed_requests_are_explained(running, path, body, status):
    got, _, answer = ask(running, "POST", path, body, raw=True)
    assert got == status
    assert json.loads(answer)["error"]
    assert b"Traceback" not in answer
    assert len(answer) < 3000


BOMB = "b0: &b0 [x, x]\n" + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 10))


@pytest.mark.parametrize(
    "text",
    [
        BOMB + MIXTURE, BOMB + "name: m\ndatasets: *b9\n", "name: " + "[" * 100_000, "seed: " + "9" * 5000,
        "a: 1\n" * 100_000,
        "name: m\ndatasets:\n" + "  - {name: viola, weight: 1}\n" * 10_000,
        "name: m\ndatasets:\n" + "".join(f"  - {{name: x{i}, weight: 1}}\n" for i in range(3000)),
        "name: m\ndatasets:\n  - {name: " + "x" * 400_000 + ", weight: 1}\n",
    ],
    ids=["bomb", "bomb as data sets", "brackets", "digits", "keys", "duplicates", "entries", "name"],
)  # fmt: skip
def test_a_hostile_text_is_answered_briefly(running, text):
    for route in ("analyse", "check"):
        status, _, answer = ask(running, "POST", f"/api/{route}", {"text": text})
        assert status == 200
        assert len(answer) < 500_000
        assert route == "check" or not json.loads(answer)["ok"]
    body = {"text": text, "operation": {"op": "remove", "rows": [0]}}
    assert ask(running, "POST", "/api/edit", body)[0] in (200, 422)


@pytest.mark.parametrize("number", ["9" * 5000, "1e5", "-1", "%C2%B2"])
def test_numbers_in_paths_are_small(running, number):
    status, _, answer = ask(running, "GET", f"/api/frame/bridge_dataset/primary/0/0/{number}")
    assert status == 404
    assert len(answer) < 300


def test_a_large_body_is_refused(running):
    assert ask(running, "POST", "/api/analyse", b"", raw=True, Content_Length=str(5 << 20))[0] == 413
    assert ask(running, "POST", "/api/analyse", b"", raw=True, Content_Length="9" * 19)[0] in (400, 413)
    assert ask(running, "POST", "/api/analyse", b"0\r\n\r\n", raw=True, Content_Length=None, Transfer_Encoding="chunked")[0] in (411, 400)  # fmt: skip  # noqa: E501


def test_two_hosts_and_old_clients(running):
    for request in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", running.port), timeout=5) as raw:
            raw.sendall(request)
            assert raw.recv(64).split()[1] in (b"421", b"400")


def test_websockets_are_refused(running):
    status, _, _ = ask(
        running, "GET", "/api/file", Upgrade="websocket", Connection="Upgrade", Sec_WebSocket_Version="13",
        Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==", Cookie=None,
    )  # fmt: skip
    assert status in (400, 401, 403)


def test_the_server_listens_on_127_0_0_1_only(running):
    sock = server.listen(0)
    assert sock.getsockname()[0] == "127.0.0.1"
    with pytest.raises(StorageError, match="is in use"):
        server.listen(sock.getsockname()[1])
    sock.close()


def test_secrets_are_long_and_not_in_messages():
    access = Access.local(1234)
    assert len(access.token) >= 32
    assert len(access.session) >= 32
    assert access.token not in repr(access)
    assert access.session not in repr(access)


def test_save_reports_a_conflict(running):
    base = json.loads(ask(running, "GET", "/api/file")[2])["base"]
    running.path.write_text("name: other\ndatasets: []\n", encoding="utf-8")
    answer = json.loads(ask(running, "POST", "/api/save", {"text": MIXTURE, "base": base})[2])
    assert answer["saved"] is False
    assert answer["text"] == "name: other\ndatasets: []\n"
    forced = json.loads(ask(running, "POST", "/api/save", {"text": MIXTURE, "base": base, "force": True})[2])
    assert forced["saved"] is True
    assert forced["base"] == json.loads(ask(running, "GET", "/api/state")[2])["base"]
    assert running.path.read_text(encoding="utf-8") == MIXTURE


def test_files_that_cannot_be_edited(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="Did you mean 'openvla_rtx'"):
        server.serve_editor("openvla_rtxx")
    monkeypatch.setattr(published, "_PACKAGED", tmp_path)
    with pytest.raises(ConfigError, match=r"belongs to the installed package; edit a copy: oxe-curate edit a$"):
        server.serve_editor(tmp_path / "a.yaml")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="yaml"):
        server.serve_editor(tmp_path / "x.txt")
    with pytest.raises(StorageError, match="no such folder"):
        server.serve_editor(tmp_path / "nowhere" / "x.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        server.serve_editor(tmp_path / "latin.yaml")


def test_a_published_mixture_is_edited_as_a_copy(tmp_path, monkeypatch, catalogue):
    monkeypatch.chdir(tmp_path)
    path, template = server._file_and_template("openvla_rtx")
    assert path == Path("openvla_rtx.yaml")
    editor = server.Editor(MixtureFile(path), catalogue, template)
    opened = editor.opened()
    assert opened["new"]
    assert opened["text"] == published.find_published("openvla_rtx").path.read_text(encoding="utf-8")
    assert editor.save({"text": "name: mine\n", "base": ""})["saved"]
    assert path.read_text() == editor.opened()["text"] == "name: mine\n"


def test_the_address_is_printed_once_it_can_be_reached(tmp_path):
    code = f"from oxe_curate.editor.server import serve_editor; serve_editor({str(tmp_path / 'a.yaml')!r}, port=0)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        address = lines[2].strip()
        port = int(address.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        assert "/?token=" in address
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_static_files_have_types_and_are_small():
    files = page.static_files()
    assert {"/", "/main.js", "/app.css", "/vendor/codemirror.js", "/vendor/preact.js"} <= set(files)
    assert max(len(data) for data, _ in files.values()) < 1_000_000
    assert not any(b"http://" in data.replace(b"http://www.w3.org/", b"") for path, (data, _) in files.items() if "vendor" not in path)  # fmt: skip  # noqa: E501


def test_the_catalogue_works_without_an_index(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(MIXTURE, encoding="utf-8")
    served = start(path, Catalogue(None))
    try:
        rows = json.loads(ask(served, "POST", "/api/analyse", GOOD)[2])["rows"]
        assert rows[0]["origin"] == "published"
        assert ask(served, "GET", "/api/frame/bridge_dataset")[0] == 404
    finally:
        served.stop()
