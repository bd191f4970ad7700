"""Which requests the label server answers: from its own pages and from viewers, with values of the kinds it knows.

MONAI Label has no login, lets every web page call it, takes file paths where names are meant, and hands a training's
values on to configs, which are evaluated. The gate stands before it and refuses what is not in the tables below.
"""

import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import torch

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]  # ASGI

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:@/\[\]\s]+)(:\d+)?", re.IGNORECASE)
EVALUATED = ("$", "@", "%")  # a config takes strings that begin so for expressions, references and macros
MAX_JSON = 1 << 20  # bytes
PAGES = ("ohif", "proxy", "static")  # the viewer's own addresses, and the DICOM server's behind it


class RefusedError(ValueError):
    """A request that is not answered: the HTTP status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


# Values


@dataclass(frozen=True)
class Kind:
    """What a value may be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


Kinds = Mapping[str, Kind]


def is_plain_name(value: Any) -> bool:
    """Whether a value names one thing: no path, nothing that a config would evaluate, no control characters."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= 255
        and value not in (".", "..")
        and not value.lstrip().startswith(EVALUATED)
        and not any(c in "/\\" or ord(c) < 32 for c in value)
    )


def is_plain_text(value: Any) -> bool:
    """Whether a value is text that no config would evaluate."""
    return isinstance(value, str) and len(value) <= 1000 and not value.lstrip().startswith(EVALUATED)


def whole_number(low: int, high: int) -> Kind:
    """A whole number; true and false do not count."""
    return Kind(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def number(low: float, below: float) -> Kind:
    """A finite number."""
    return Kind(
        f"a number of at least {low:g} and below {below:g}", lambda v: type(v) in (int, float) and low <= v < below
    )


def one_of(*values: str) -> Kind:
    """One of some strings."""
    return Kind(" or ".join(repr(value) for value in values), lambda v: isinstance(v, str) and v in values)


def list_of(kind: Kind) -> Kind:
    """A list, each of whose values is of a kind."""
    return Kind(f"a list, each {kind.words}", lambda v: isinstance(v, list) and all(map(kind.fits, v)))


def _is_device(value: Any) -> bool:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    known = {"cpu", "cuda", *names, *(f"{name}:{i}" for i, name in enumerate(names))}
    return isinstance(value, str) and (value in known or re.fullmatch(r"cuda:\d{1,3}", value) is not None)


def _is_segment(value: Any) -> bool:
    """One entry of ``label_info``: a segment's name, place and colour as viewers send them."""
    return (
        isinstance(value, dict)
        and set(value) <= {"name", "idx", "id", "description", "color", "model_name"}
        and is_plain_text(value.get("name", "unnamed"))
        and all(is_plain_text(value[key]) for key in ("description", "model_name") if key in value)
        and all(type(value[key]) is int for key in ("idx", "id") if key in value)
        and isinstance(value.get("color", []), list)
        and all(type(part) in (int, float) for part in value.get("color", []))
    )


YES_NO = Kind("true or false", lambda v: isinstance(v, bool))
NAME = Kind("a name", is_plain_name)
TEXT = Kind("text", is_plain_text)
EMPTY = one_of("")
TAG = Kind(
    "a name other than 'final', which holds what people have drawn",
    lambda v: is_plain_name(v) and v != "final",
)
GPUS = Kind(
    "'all', or numbers as '0,1'", lambda v: isinstance(v, str) and re.fullmatch(r"all|\d+(,\d+)*", v) is not None
)
RUNNING: Kinds = {
    "device": Kind("'cpu', 'cuda', 'cuda:0', ... or the name of a device here", _is_device),
    "multi_gpu": YES_NO,
    "gpus": GPUS,
    "client_id": TEXT,
}
LOGGING: Kinds = {"logging": one_of("DEBUG", "INFO", "WARNING", "ERROR")}
TRAINING: Kinds = {
    **RUNNING,
    "max_epochs": whole_number(1, 100_000),
    "val_split": number(0, 1),
    "pretrained": YES_NO,
    # what viewers also send, meant for MONAI Label's own apps: accepted where it changes nothing
    "model_filename": one_of("model.pt"),
    "run_id": one_of("", "run"),
    "tracking": one_of("", "None"),
    "tracking_uri": EMPTY,
    "tracking_experiment_name": EMPTY,
}
INFERENCE: Kinds = {
    **RUNNING,
    **LOGGING,
    "model_filename": one_of("model.pt"),
    "save_label": YES_NO,
    "label_tag": TAG,
    "label_info": Kind(
        "a list of segments, each with its name", lambda v: isinstance(v, list) and all(map(_is_segment, v))
    ),
    "label_prompt": list_of(whole_number(0, 65535)),
    "restore_label_idx": YES_NO,
    "result_extension": one_of(".nii.gz", ".nii", ".nrrd"),
    "result_dtype": one_of("uint8", "uint16"),
    "result_compress": YES_NO,
    # scribbles
    "roi": list_of(whole_number(-100_000, 100_000)),
    "selected_label_name": TEXT,
    "lamda": number(0, 1000),
    "sigma": number(0.001, 1000),
    "num_bins": whole_number(2, 1024),
}
BATCH: Kinds = {
    **{name: INFERENCE[name] for name in (*RUNNING, *LOGGING, "model_filename", "save_label", "label_tag")},
    **{name: INFERENCE[name] for name in ("result_extension", "result_dtype", "result_compress")},
    "images": list_of(NAME),
    "max_workers": whole_number(0, 64),
    "max_batch_size": whole_number(0, 1_000_000),
}
SCORING: Kinds = {
    **RUNNING,
    **LOGGING,
    "simulation_size": whole_number(2, 100),
    "max_samples": whole_number(0, 1_000_000),
    "max_workers": whole_number(0, 64),
}
SELECTION: Kinds = {"client_id": TEXT, "label_tag": NAME, "labels": list_of(TEXT)}


def check_values(values: Any, kinds: Kinds) -> None:
    """Refuse values of the wrong kind, and keys that are not known.

    Raises:
        RefusedError: names the first one, and what is taken instead.
    """
    if not isinstance(values, Mapping):
        raise RefusedError(400, "the request's values must be a JSON object")
    for name, value in values.items():
        if name not in kinds:
            raise RefusedError(400, f"{name[:50]!r} is not taken here; {', '.join(kinds)} are")
        if not kinds[name].fits(value):
            raise RefusedError(400, f"{name} must be {kinds[name].words}, it is {json.dumps(value)[:100]}")


def read_json(text: str | bytes) -> Any:
    """JSON that a request holds; nothing is an empty object.

    Raises:
        RefusedError: it is no JSON.
    """
    try:
        return json.loads(text or "{}") or {}
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the request's values are no JSON: {error}") from error


# Endpoints

ENDPOINTS: tuple[tuple[str, str, Kinds | None], ...] = (  # what may change something, and the kinds of its JSON values
    ("POST", r"/infer/[^/]+", None),  # a form: its values come to check_values by the app
    ("POST", r"/batch/infer/[^/]+", BATCH),
    ("DELETE", r"/batch/infer", None),
    ("POST", r"/train(/[^/]+)?", TRAINING),
    ("DELETE", r"/train", None),
    ("POST", r"/scoring(/[^/]+)?", SCORING),
    ("DELETE", r"/scoring", None),
    ("POST", r"/activelearning/[^/]+", SELECTION),
    ("PUT", r"/datastore(/image|/label)?(/info)?", None),
    ("PUT", r"/datastore/updatelabelinfo", None),
    ("DELETE", r"/datastore(/image|/label)?", None),
    ("PUT", r"/session", None),
    ("DELETE", r"/session/[^/]+", None),
    ("POST", r"/reload", None),
    ("POST", r"/auth/token", None),
    ("POST", r"/proxy/dicom/.+", None),
)
READING = ("GET", "HEAD", "OPTIONS")


def find_kinds(method: str, path: str) -> Kinds | None:
    """The kinds of an endpoint's JSON values; None where it takes none.

    Raises:
        RefusedError: the endpoint is not one of those that may be called.
    """
    if method in READING:
        return None
    for known, pattern, kinds in ENDPOINTS:
        if known == method and re.fullmatch(pattern, path.rstrip("/")):
            return kinds
    reason = f"{method} {path} is not served here"
    if path.startswith("/model/"):
        reason += ": weights are replaced by a training, or by hand where the server runs, as docs/monailabel.md says"
    raise RefusedError(405, reason)


def check_address(path: str, query: str) -> None:
    """Refuse an address that leads elsewhere: names only, where names are meant.

    Raises:
        RefusedError: names the part.
    """
    while (decoded := unquote(path)) != path:  # what is quoted twice is unquoted by the next program
        path = decoded
    parts = re.split(r"[/\\]", path)
    if ".." in parts or any(ord(c) < 32 for c in path):
        raise RefusedError(400, f"the address {path[:100]!r} leads elsewhere")
    if parts[1:2] and parts[1] in PAGES:
        return
    for part in parts:
        if part and not is_plain_name(part):
            raise RefusedError(400, f"{part[:100]!r} in the address is not a name")
    for name, value in parse_qsl(query, keep_blank_values=True):
        if value and not is_plain_name(value):
            raise RefusedError(400, f"{name[:50]} must be a name without slashes, it is {value[:100]!r}")
        if name == "uncompress" and value.lower() not in ("", "false", "0", "no", "off"):
            raise RefusedError(400, "archives are not unpacked: send the image itself")


def check_sender(headers: Iterable[tuple[bytes, bytes]], hosts: Iterable[str]) -> None:
    """Refuse a request that was sent to another name, or by another site's page.

    Args:
        headers: of the request, as ASGI has them.
        hosts: names besides the loopback's under which the server is reached.

    Raises:
        RefusedError: names the host or the origin.
    """
    others = {name.strip().lower() for name in hosts} - {""}
    found: dict[str, list[str]] = {"host": [], "origin": []}
    for name, value in headers:
        found.get(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip().lower())
    match = HOST.fullmatch(found["host"][0]) if len(found["host"]) == 1 else None
    if match is None or match[1].strip("[]") not in LOOPBACK | others:
        named = ", ".join(found["host"])[:100] or "nothing"
        raise RefusedError(
            403, f"the host {named} is not one of this server's: name it in the option hosts at the start"
        )
    for origin in found["origin"]:
        page = urlsplit(origin)
        if page.netloc != found["host"][0] and _host_name(page.netloc) not in others:
            raise RefusedError(403, f"a page of {origin[:100]} may not use this server")


def _host_name(netloc: str) -> str | None:
    match = HOST.fullmatch(netloc)
    return match[1].strip("[]") if match else None


class Gate:
    """An ASGI application that lets a request through to another one, or refuses it with a reason.

    Args:
        server: MONAI Label's application.
        hosts: names besides the loopback's under which the server is reached.
    """

    def __init__(self, server: Application, hosts: Iterable[str] = ()) -> None:
        self.server = server
        self.hosts = tuple(hosts)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.server(scope, receive, send)
            return
        try:
            receive = await self.check(scope, receive)
        except RefusedError as error:
            logger.warning("refused %s %.200r: %s", scope.get("method", ""), scope["path"], error)
            await _answer(scope, send, error)
            return
        await self.server(scope, receive, send)

    async def check(self, scope: Message, receive: Receive) -> Receive:
        """What the server receives of a request that it may answer.

        Raises:
            RefusedError: it may not.
        """
        if scope["type"] != "http":
            raise RefusedError(403, "HTTP alone is served")
        check_sender(scope["headers"], self.hosts)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        check_address(path, scope["query_string"].decode("latin-1"))
        kinds = find_kinds(scope["method"], path)
        if kinds is None:
            return receive
        body = await _whole_body(receive)
        values = read_json(body)
        if path.rstrip("/") in ("/train", "/scoring") and isinstance(values, dict):  # for all trainers, or by name
            for part in [values.pop(name) for name in list(values) if name not in kinds]:
                check_values(part, kinds)
        check_values(values, kinds)
        return _again(body, receive)


async def _whole_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_JSON:
            raise RefusedError(413, f"the request's values take more than {MAX_JSON} bytes")
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Receive a body that was read already, then whatever follows."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


async def _answer(scope: Message, send: Send, error: RefusedError) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = json.dumps({"detail": str(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
