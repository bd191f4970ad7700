"""What the label server answers to, asked as a web server asks an ASGI application."""

import asyncio
import json

import pytest
from digar.cli.gate import INFERENCE, MAX_JSON, TRAINING, Gate, RefusedError, check_values, read_json

OWN = {"host": "127.0.0.1:8000"}


class Echo:
    """A server that keeps the body of the request that reached it."""

    def __init__(self) -> None:
        self.body: bytes | None = None

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            self.body = b"lifespan"
            return
        message = await receive()
        self.body = message["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def ask(method: str, path: str, body: bytes = b"", query: str = "", headers: dict | None = None, **gate) -> tuple:
    """The status and text of the answer, and the body that the server behind the gate received (None: nothing)."""
    echo, sent = Echo(), []
    parts = [{"type": "http.request", "body": body[i : i + 1000], "more_body": True} for i in range(0, len(body), 1000)]
    parts.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict:
        return parts.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in (OWN if headers is None else headers).items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": pairs}
    asyncio.run(Gate(echo, **gate)(scope, receive, send))
    return sent[0]["status"], sent[-1]["body"].decode(), echo.body


def post(path: str, values: object) -> tuple:
    return ask("POST", path, json.dumps(values).encode())


# Who asks


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.0.0.1", "LOCALHOST:1"])
def test_the_loopback_is_answered(host: str) -> None:
    assert ask("GET", "/info/", headers={"host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:8000", "127.0.0.1.evil.example", "192.168.0.7:8000", "evil.example@127.0.0.1", "", "localhost:x",
     "127.0.0.1:8000, evil.example"],
)  # fmt: skip
def test_another_host_is_refused(host: str) -> None:
    status, text, received = ask("GET", "/info/", headers={"host": host})
    assert status == 403
    assert "is not one of this server's" in text
    assert received is None


def test_a_request_without_a_host_is_refused() -> None:
    assert ask("GET", "/info/", headers={})[0] == 403


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8000", "file://", "http://127.0.0.1",
     "http://evil.example:8000", "http://127.0.0.1:8000.evil.example"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_page_of_another_origin_is_refused(origin: str, method: str) -> None:
    status, text, received = ask(method, "/train/digar", b"{}", headers={**OWN, "origin": origin})
    assert (status, received) == (403, None)
    assert "may not use this server" in text


def test_the_servers_own_pages_are_answered() -> None:
    assert ask("POST", "/train/digar", b"{}", headers={**OWN, "origin": "http://127.0.0.1:8000"})[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "label.clinic.example"}, 200),
        ({"host": "label.clinic.example", "origin": "https://label.clinic.example"}, 200),
        ({"host": "127.0.0.1:8000", "origin": "https://label.clinic.example"}, 200),
        ({"host": "label.clinic.example", "origin": "https://other.clinic.example"}, 403),
        ({"host": "other.clinic.example"}, 403),
    ],
)
def test_other_hosts_are_answered_by_an_option(headers: dict, status: int) -> None:
    assert ask("GET", "/info/", headers=headers, hosts=["label.clinic.example", ""])[0] == status


def test_what_starts_and_stops_the_server_passes() -> None:
    echo = Echo()
    asyncio.run(Gate(echo)({"type": "lifespan"}, None, None))
    assert echo.body == b"lifespan"


def test_a_websocket_is_closed() -> None:
    sent = []

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(Gate(Echo())({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


# Where to


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/model/digar"),
        ("DELETE", "/model/digar"),
        ("POST", "/infer/wsi/digar"),
        ("POST", "/infer/wsi_v2/digar"),
        ("PATCH", "/info/"),
        ("POST", "/new_endpoint"),
        ("POST", "/datastore/image"),
    ],
)
def test_what_is_not_in_the_table_is_not_served(method: str, path: str) -> None:
    status, text, received = ask(method, path)
    assert (status, received) == (405, None)
    assert "is not served here" in text


@pytest.mark.parametrize(
    "path",
    ["/session/..", "/session/../../x", "/ohif/../../etc/passwd", "/proxy/dicom/../tools/execute-script",
     "/proxy/dicom/%2e%2e/tools", "/proxy/dicom/%252e%252e/tools", "/static/..\\x", "/datastore/$x", "/info/\x00"],
)  # fmt: skip
def test_an_address_that_leads_elsewhere_is_refused(path: str) -> None:
    assert ask("GET", path)[::2] == (400, None)


@pytest.mark.parametrize("name", ["image", "id", "label", "tag", "session_id", "model", "images", "unknown"])
@pytest.mark.parametrize("value", ["/etc/passwd", "../x", "a/b", "..", "a%5Cb", "%2Fetc%2Fpasswd", "$x", "@x", "a%00"])
def test_a_path_where_a_name_is_meant_is_refused(name: str, value: str) -> None:
    for method, path in (("POST", "/infer/digar"), ("PUT", "/datastore/label"), ("GET", "/datastore/image")):
        status, text, received = ask(method, path, query=f"output=json&{name}={value}")
        assert (status, received) == (400, None)
        assert f"{name} must be a name without slashes" in text


def test_names_are_taken() -> None:
    query = "image=case_0.v2%20(1)&tag=original&output=image&check_sum=SHA256:ab&session_id=&limit_cases=3"
    assert ask("GET", "/datastore/image", query=query)[0] == 200
    assert ask("GET", "/proxy/dicom/qido/studies", query="PatientName=a/b&url=http://x")[0] == 200


def test_archives_are_not_unpacked() -> None:
    assert ask("PUT", "/session/", query="uncompress=true")[0] == 400
    assert ask("PUT", "/session/", query="uncompress=false")[0] == 200


# With which values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", -1), ("max_epochs", 0), ("max_epochs", 2.5), ("max_epochs", True), ("max_epochs", "3"),
        ("max_epochs", "$__import__('os').system('x')"), ("max_epochs", [1]), ("max_epochs", 10**9),
        ("max_epochs", None), ("val_split", 5), ("val_split", 1), ("val_split", -1), ("val_split", -0.1),
        ("val_split", float("nan")), ("val_split", "0.2"), ("pretrained", 1), ("pretrained", "$True"),
        ("device", "$__import__('os')"), ("device", "@train#trainer"), ("device", "%/etc/passwd"),
        ("device", "nowhere"), ("device", ["cpu"]), ("multi_gpu", "true"), ("gpus", "0;1"), ("gpus", "$1"),
        ("model_filename", "../../x.pt"), ("run_id", "$1"), ("run_id", "initialize"), ("tracking", "mlflow"),
        ("tracking_uri", "http://evil.example"), ("tracking_uri", "$1"), ("tracking_experiment_name", "$1"),
        ("client_id", "$1"), ("bundle_path", "/tmp"), ("model", "other"), ("force_multi_gpu", True),
        ("train#trainer#max_epochs", 1), ("local_rank", 1), ("digar", {"max_epochs": 1}),
    ],
)  # fmt: skip
def test_a_training_takes_known_values_of_their_kind_alone(name: str, value: object) -> None:
    status, text, received = post("/train/digar", {"client_id": "me", name: value})
    assert (status, received) == (400, None)
    assert name in text
    assert post("/train/", {"digar": {name: value}})[0] == 400


SLICER = {  # what 3D Slicer sends with its default options
    "device": "cpu", "pretrained": True, "max_epochs": 50, "val_split": 0.2, "multi_gpu": True, "gpus": "all",
    "tracking": "None", "tracking_uri": "", "tracking_experiment_name": "", "run_id": "", "model_filename": "model.pt",
    "client_id": "user-xyz",
}  # fmt: skip


def test_what_viewers_send_reaches_the_server_as_it_was_sent() -> None:
    body = json.dumps(SLICER | {"client_id": "x" * 900}).encode()
    assert ask("POST", "/train/digar", body) == (200, "{}", body)
    assert post("/train/", {"digar": SLICER})[0] == 200  # OHIF
    assert post("/train/", SLICER)[0] == 200
    assert post("/activelearning/epistemic", {"client_id": "user-xyz"})[0] == 200
    assert post("/scoring/epistemic", {"simulation_size": 2})[0] == 200
    default = {  # of MONAI Label's page of endpoints
        "device": "cuda", "multi_gpu": True, "gpus": "all", "logging": "WARNING", "save_label": True,
        "label_tag": "original", "max_workers": 1, "max_batch_size": 0,
    }  # fmt: skip
    assert post("/batch/infer/digar", default)[0] == 200
    assert ask("POST", "/train/digar")[0] == 200
    assert ask("POST", "/train/digar", b"null")[0] == 200


@pytest.mark.parametrize("path", ["/train/digar", "/scoring/epistemic", "/batch/infer/digar", "/activelearning/first"])
def test_values_that_are_no_object_are_refused(path: str) -> None:
    for body in (b"{not json", b"[1]", b'"text"', b"[" * 100_000, b"\xff\xfe"):
        assert ask("POST", path, body)[::2] == (400, None)
    assert ask("POST", path, b" " * (MAX_JSON + 1))[::2] == (413, None)


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("/batch/infer/digar", {"images": ["/etc/passwd"]}),
        ("/batch/infer/digar", {"images": "case_0"}),
        ("/batch/infer/digar", {"label_tag": "../x"}),
        ("/batch/infer/digar", {"label_tag": "final"}),
        ("/batch/infer/digar", {"max_workers": -1}),
        ("/batch/infer/digar", {"image_path": "/etc/passwd"}),
        ("/batch/infer/digar", {"bundle_path": "/tmp"}),
        ("/scoring/epistemic", {"bundle_path": "/tmp"}),
        ("/scoring/epistemic", {"simulation_size": 10**6}),
        ("/activelearning/first", {"strategy": "random"}),
        ("/activelearning/first", {"client_id": "%x"}),
    ],
)
def test_other_endpoints_take_known_values_of_their_kind_alone(path: str, values: dict) -> None:
    assert post(path, values)[::2] == (400, None)


@pytest.mark.parametrize(
    "values",
    [
        {"image": "/etc/passwd"}, {"label": "/etc/passwd"}, {"session": {"image": "/etc/passwd"}}, {"model": "x"},
        {"image_path": "/x"}, {"device": "$1"}, {"model_filename": "../x.pt"}, {"result_extension": ".sh"},
        {"result_dtype": "$1"}, {"label_tag": "../x"}, {"label_tag": "final"}, {"label_info": [{"name": "$1"}]},
        {"label_info": [{"name": 1}]}, {"label_info": [{"path": "x"}]}, {"label_info": [{"name": "a", "color": "$1"}]},
        {"roi": ["$1"]}, {"logging": "$1"}, {"skip_writer": True}, {"foreground": [[1, 2, 3]]},
    ],
)  # fmt: skip
def test_a_mask_takes_known_values_of_their_kind_alone(values: dict) -> None:
    with pytest.raises(RefusedError, match=next(iter(values))):
        check_values(values, INFERENCE)


def test_a_mask_takes_what_viewers_send() -> None:
    slicer = {"device": "cpu", "model_filename": "model.pt", "result_extension": ".nrrd", "result_dtype": "uint8"}
    ohif = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}
    segment = {"name": "anterior", "idx": 1, "description": "", "color": [0, 255, 0]}
    for values in (slicer, ohif, {"label_info": [segment], "roi": [], "selected_label_name": "posterior"}):
        check_values(values, INFERENCE)


def test_a_refusal_says_what_is_taken() -> None:
    with pytest.raises(RefusedError, match=r"max_epochs must be a whole number from 1 to 100000, it is -1"):
        check_values({"max_epochs": -1}, TRAINING)
    with pytest.raises(RefusedError, match=r"'epochs' is not taken here; device, .*max_epochs.* are"):
        check_values({"epochs": 1}, TRAINING)
    with pytest.raises(RefusedError, match="no JSON"):
        read_json("{")
