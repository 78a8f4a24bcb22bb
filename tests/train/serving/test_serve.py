import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("torch")

from starlette.testclient import TestClient

from oxe_curate.errors import StorageError
from oxe_curate.train import Policy
from oxe_curate.train.models import base
from oxe_curate.train.serving import serve, wire
from tests.train import toy_policy as toy
from tests.train.toy_policy import red

CLIENT_ARRAY = {"__numpy__": base64.b64encode(bytes(range(12))).decode(), "dtype": "|u1", "shape": [2, 2, 3]}
"""The output of json-numpy 2.1.1 for np.arange(12, dtype=np.uint8).reshape(2, 2, 3)."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setitem(base._FAMILIES, "openvla", "tests.train.toy_policy:ToyFamily")
    return toy.write_run(tmp_path / "run", toy.write_base(tmp_path / "base"), names=("bridge_orig", "kuka"), chunk=2)


@pytest.fixture
def policy(run):
    return Policy.load(run, "bridge_orig")


@pytest.fixture
def client(policy):
    with TestClient(serve.policy_application(policy, max_bytes=20_000)) as found:
        yield found


def post(client, payload, path="/act", **headers):
    return client.post(path, content=wire.dumps(payload), headers={"content-type": "application/json", **headers})


def error(answer, status):
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


# ── arrays in JSON ──


def test_arrays_are_written_like_json_numpy():
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert json.loads(wire.dumps(array)) == CLIENT_ARRAY
    np.testing.assert_array_equal(wire.loads(json.dumps({"image": CLIENT_ARRAY}))["image"], array)


@pytest.mark.parametrize("dtype", ["|u1", "<f4", "<f8", ">i2", "|b1", "<u8"])
def test_arrays_survive_a_round_trip(dtype):
    for array in (np.ones((2, 3), dtype), np.ones((0, 3), dtype), np.ones((3, 2), dtype).T, np.ones((), dtype)):
        found = wire.loads(wire.dumps({"a": [array]}))["a"][0]
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype.newbyteorder("=") or found.dtype == array.dtype
        assert np.shape(found) == array.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "O"}, "expected a numeric type"),
        ({"dtype": [["a", "<f4"]]}, "expected a numeric type"),
        ({"dtype": "<U4"}, "expected a numeric type"),
        ({"dtype": "(2,)u1"}, "expected a numeric type"),
        ({"dtype": "nonsense"}, "expected a numeric type"),
        ({"dtype": None}, "expected a numeric type"),
        ({"shape": [2, 2, 4]}, "12 bytes do not match"),
        ({"shape": [-1, 12]}, "list of integers"),
        ({"shape": 12}, "list of integers"),
        ({"shape": [10**30]}, "do not match"),
        ({"__numpy__": "%%%"}, "not valid base64"),
        ({"__numpy__": 5}, "not valid base64"),
    ],
)
def test_a_malformed_array_is_refused(client, change, message):
    text = json.dumps({"image": CLIENT_ARRAY | change, "instruction": "lift"})
    answer = client.post("/act", content=text, headers={"content-type": "application/json"})
    assert message in error(answer, 400)


# ── the interface ──


def test_act_returns_the_action_of_the_policy(client, policy):
    answer = post(client, {"image": red(200), "instruction": "lift the cup"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    action = wire.loads(answer.content)
    assert (action.dtype, action.shape) == (np.float64, (7,))
    np.testing.assert_array_equal(action, policy(red(200), "lift the cup"))


def test_encoded_requests_get_encoded_answers(client, policy):
    encoded = wire.dumps({"image": red(200), "instruction": "lift the cup"})
    answer = client.post("/act", json={"encoded": encoded})
    text = answer.json()
    assert isinstance(text, str)
    np.testing.assert_array_equal(wire.loads(text), policy(red(200), "lift the cup"))
    assert "no other key" in error(client.post("/act", json={"encoded": encoded, "instruction": "x"}), 400)


def test_requests_may_set_data_set_chunk_and_image_format(client, policy):
    kuka = wire.loads(post(client, {"image": red(200), "instruction": "lift", "unnorm_key": "kuka"}).content)
    np.testing.assert_array_equal(kuka, policy(red(200), "lift", unnorm_key="kuka"))
    for image in ({"primary": red(200)}, [red(200)], red(200).tolist()):
        chunk = wire.loads(post(client, {"image": image, "instruction": "lift", "chunk": True}).content)
        np.testing.assert_array_equal(chunk, policy.chunk(red(200), "lift"))
    answer = post(client, {"image": red(200), "instruction": "lift", "unnorm_key": "kukka"})
    assert "Did you mean 'kuka'? Known: bridge_orig, kuka." in error(answer, 400)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"instruction": "lift"}, "the key 'image' is missing"),
        ({"image": red(0)}, "the key 'instruction' is missing"),
        ({"image": red(0), "instruction": "lift", "unorm_key": "kuka"}, "unknown key 'unorm_key'. Did you mean"),
        ({"image": red(0), "instruction": 5}, "instruction: expected a text"),
        ({"image": red(0)[..., 0], "instruction": "lift"}, "got 8"),
        ({"image": red(0) / 255.0, "instruction": "lift"}, "expected uint8"),
        ({"image": red(0), "instruction": "lift", "proprio": [1.0]}, "trained without proprio"),
        ({"image": red(0), "instruction": "lift", "unnorm_key": 1}, "expected the name of a data set"),
        ({"image": red(0), "instruction": "lift", "chunk": 1}, "expected true or false"),
        ([1, 2], "expected a JSON object, got list"),
    ],
)
def test_a_wrong_request_gets_a_message(client, payload, message):
    answer = post(client, payload)
    assert message in error(answer, 400)
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 10_000])
def test_invalid_json_is_refused(client, body):
    answer = client.post("/act", content=body, headers={"content-type": "application/json"})
    assert "not valid JSON" in error(answer, 400)


def test_a_large_request_is_refused_with_or_without_a_content_length(client):
    assert "--max-mb" in error(post(client, {"image": red(0, 100), "instruction": "lift"}), 413)
    parts = (b"x" * 9_000 for _ in range(3))
    answer = client.post("/act", content=parts, headers={"content-type": "application/json"})
    assert "20,000 bytes" in error(answer, 413)


def test_requests_of_web_pages_are_refused(client):
    payload = {"image": red(0), "instruction": "lift"}
    assert "web pages" in error(post(client, payload, origin="http://127.0.0.1:8000"), 403)
    assert "text/plain" in error(post(client, payload, **{"content-type": "text/plain"}), 415)


def test_other_paths_and_methods_are_refused(client):
    assert "POST /act" in error(client.get("/"), 404)
    answer = client.get("/act")
    assert error(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_health_describes_the_policy(client):
    found = client.get("/health").json()
    assert (found["status"], found["unnorm_key"], found["unnorm_keys"]) == (
        "ok",
        "bridge_orig",
        ["bridge_orig", "kuka"],
    )
    assert (found["cameras"], found["window"], found["chunk"], found["proprio"]) == (["primary"], 1, 2, 0)


def test_reset_starts_a_new_episode(run, tmp_path):
    stateful = toy.write_run(tmp_path / "stateful", tmp_path / "base", window=2)
    with TestClient(serve.policy_application(Policy.load(stateful))) as client:
        payload = {"image": red(0), "instruction": "lift"}
        post(client, payload | {"image": red(255)})
        assert wire.loads(post(client, payload).content)[6] > 0
        post(client, payload | {"image": red(255)})
        assert post(client, {}, "/reset").json() == {"status": "ok"}
        assert wire.loads(post(client, payload).content)[6] == 0


def test_an_internal_fault_shows_no_traceback(policy, caplog):
    policy._controller.act = lambda *_: 1 / 0
    with TestClient(serve.policy_application(policy), raise_server_exceptions=False) as client:
        answer = post(client, {"image": red(0), "instruction": "lift"})
    assert error(answer, 500) == "internal fault: ZeroDivisionError; the server's terminal has the traceback"
    assert "Traceback" in caplog.text


def test_a_diverged_model_is_a_server_error(policy):
    policy._controller.act = lambda *_: np.full((2, 7), np.nan, np.float32)
    with TestClient(serve.policy_application(policy)) as client:
        assert "not finite" in error(post(client, {"image": red(0), "instruction": "lift"}), 500)


def test_the_model_handles_one_request_at_a_time(policy):
    inside, most, guard = [0], [0], threading.Lock()
    plain = policy._controller.act

    def slow(*args):
        with guard:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        with guard:
            inside[0] -= 1
        return plain(*args)

    policy._controller.act = slow
    with TestClient(serve.policy_application(policy)) as client:
        codes: list[int] = []

        def one():
            codes.append(post(client, {"image": red(0), "instruction": "lift"}).status_code)

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [200] * 4
    assert most == [1]


def test_the_address_is_checked_before_loading(tmp_path):
    with serve.bind("127.0.0.1", 0) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(StorageError, match=f"port {port} is in use"):
            serve.serve_policy(tmp_path / "missing", port=port)
    with pytest.raises(StorageError, match="not an address of this machine"):
        serve.bind("192.0.2.1", 0)
    with pytest.raises(StorageError, match="not a valid address"):
        serve.bind("no host", 0)


SERVER = """
import sys
from oxe_curate.train.models import base
from oxe_curate.train.serving.serve import serve_policy
base._FAMILIES["openvla"] = "tests.train.toy_policy:ToyFamily"
serve_policy(sys.argv[1], port=0, host=sys.argv[2], unnorm_key="kuka", max_bytes=20_000)
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_real_server_answers_and_stops_cleanly(run, policy, host):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    command = [sys.executable, "-c", SERVER, str(run), host]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as served:
        line = served.stdout.readline()
        assert f"http://{host}:" in line, served.stderr.read()
        if host == "0.0.0.0":
            assert served.stdout.readline().startswith("Warning")
        connection = http.client.HTTPConnection("127.0.0.1", int(line.split(host + ":")[1].split("/")[0]), timeout=60)
        body = wire.dumps({"image": red(77), "instruction": "lift"})
        for _ in range(2):  # on one connection
            connection.request("POST", "/act", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            action = wire.loads(answer.read())
            assert answer.status == 200
            np.testing.assert_array_equal(action, policy(red(77), "lift", unnorm_key="kuka"))
        connection.request("POST", "/act", b"x" * 30_000, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 413
        connection.close()
        served.send_signal(signal.SIGINT)
        rest = served.communicate(timeout=60)
        assert served.returncode == 0
    assert "Traceback" not in rest[1]
