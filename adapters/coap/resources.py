"""The gateway's own CoAP resources: from a request to its content. Pure but for what the view and the sink do.

Read-only, but for pushed readings. Nothing here moves an actuator: only rules and commands do, through the arbiter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from adapters.coap.content import Unreadable, number
from adapters.coap.message import Code, MalformedMessage, Message, Option
from edge_runtime.errors import EdgeRuntimeError, InputError
from edge_runtime.ports import GatewayView
from edge_runtime.types import ChannelInfo, Quality, Sample

TEXT, LINKS, JSON = 0, 40, 50
MOST_PUSH_BYTES = 1024

_KNOWN = frozenset(Option)
_FAMILIES = {"/readings": "edge.reading", "/actuators": "edge.actuator"}
_QUALITIES = {"good": Quality.GOOD, "uncertain": Quality.UNCERTAIN, "bad": Quality.BAD}


class Content(NamedTuple):
    """What a resource holds, or why there is nothing. `format` is a content format's number; None: a diagnostic text."""

    code: Code
    payload: bytes = b""
    format: int | None = None
    observable: bool = False
    options: tuple[tuple[int, bytes], ...] = ()


class Refused(InputError):
    """A request that is not answered with content."""

    def __init__(self, code: Code, message: str, options: tuple[tuple[int, bytes], ...] = ()) -> None:
        self.content = Content(code, message.encode()[:200], options=options)
        super().__init__(message)


class Request(NamedTuple):
    """A request's method and target."""

    method: int
    path: str
    query: Mapping[str, str]
    accept: int | None

    @classmethod
    def of(cls, message: Message) -> Request:
        """Raises Refused for options that are unknown and critical, and for a target that is no text."""
        for option, _ in message.options:
            if option in (Option.PROXY_URI, Option.PROXY_SCHEME):
                raise Refused(Code.NO_PROXY, "this gateway is no proxy")
            if option % 2 and option not in _KNOWN:
                raise Refused(Code.BAD_OPTION, f"option {option} is critical and not known here")
        try:
            segments = [value.decode() for value in message.values(Option.URI_PATH)]
            pairs = [value.decode().partition("=") for value in message.values(Option.URI_QUERY)]
            accept = message.uint(Option.ACCEPT)
        except UnicodeDecodeError as err:
            raise Refused(Code.BAD_REQUEST, "expected a path and a query in UTF-8") from err
        except MalformedMessage as err:
            raise Refused(Code.BAD_OPTION, str(err)) from err
        return cls(message.code, "/" + "/".join(segments), {key: value for key, _, value in pairs}, accept)


class Resources:
    """`pushed` are the channels that a reading may be pushed to; `push` takes one, and says whether anything listens."""

    def __init__(self, view: GatewayView, pushed: Sequence[ChannelInfo], push: Callable[[Sample], bool]) -> None:
        self._documents = view.documents()
        self._pushed = {info.channel: info for info in pushed}
        self._push = push

    def answer(self, request: Request, message: Message) -> Content:
        """Raises Refused."""
        if request.path.startswith("/ingest/"):
            return self._ingest(request, message)
        if not self._exists(request.path):
            raise Refused(Code.NOT_FOUND, f"no {request.path[:100]}{self._near(request.path)}")
        if request.method != Code.GET:
            raise Refused(Code.METHOD_NOT_ALLOWED, "expected GET; readings go to /ingest/CHANNEL, actuators are moved by rules only")
        if request.path == "/.well-known/core":
            return _formatted(request, {LINKS: lambda: self._links(request.query)})
        return self._document(request)

    def _exists(self, path: str) -> bool:
        return path == "/.well-known/core" or path in self._documents or self._family(path) is not None

    def _near(self, path: str) -> str:
        near = get_close_matches(path, [*self._documents, "/.well-known/core"], n=1)
        return f"; did you mean {near[0]}?" if near else "; see /.well-known/core"

    def _family(self, path: str) -> str | None:
        return next((family for family in _FAMILIES if path.startswith(f"{family}/")), None)

    def _document(self, request: Request) -> Content:
        family = self._family(request.path)
        name = "" if family is None else unquote(request.path.removeprefix(f"{family}/"))
        query = request.query if family is None else {"name": name}
        try:
            document = self._documents[family or request.path](query)
        except EdgeRuntimeError as err:
            raise Refused(Code.BAD_REQUEST if family is None else Code.NOT_FOUND, str(err)) from err
        forms: dict[int, Callable[[], bytes]] = {JSON: lambda: msgspec.json.encode(document)}
        if family is not None:
            forms = {TEXT: lambda: _text(document)} | forms
        return _formatted(request, forms)._replace(observable=family is not None or request.path == "/decisions")

    def _links(self, query: Mapping[str, str]) -> bytes:
        """Link format (RFC 6690), and its filter by `rt` and `href`."""
        links = [_link(path, "edge.document", JSON, path == "/decisions") for path in self._documents if path not in _FAMILIES]
        for family, kind in _FAMILIES.items():
            links.append(_link(family, f"{kind}s", JSON, observable=False))
            links += [_link(f"{family}/{quote(name)}", kind, TEXT, observable=True) for name in self._documents[family]({})]
        links += [_link(f"/ingest/{quote(name)}", "edge.ingest", None, observable=False) for name in self._pushed]
        return ",".join(link for link in links if _fits(link, query)).encode()

    # -- pushed readings --------------------------------------------------------------------------------------------------------

    def _ingest(self, request: Request, message: Message) -> Content:
        info = self._pushed.get(unquote(request.path.removeprefix("/ingest/")))
        if info is None:
            known = ", ".join(self._pushed) or "none: see coap.ingest in the gateway file"
            raise Refused(Code.NOT_FOUND, f"no reading is taken for {request.path[:60]} (known: {known})")
        if request.method not in (Code.POST, Code.PUT):
            raise Refused(Code.METHOD_NOT_ALLOWED, "expected POST or PUT of one number")
        sample = Sample(info.channel, _value(message, info), quality=_quality(request.query))
        if not self._push(sample):
            raise Refused(Code.UNAVAILABLE, f"no sensor of the deployment listens to {info.channel} now")
        return Content(Code.CHANGED)


def _value(message: Message, info: ChannelInfo) -> float:
    block = message.uint(Option.BLOCK1)
    if len(message.payload) > MOST_PUSH_BYTES or (block is not None and block > 7):
        size = (Option.SIZE1, MOST_PUSH_BYTES.to_bytes(2, "big"))
        raise Refused(Code.TOO_LARGE, f"expected one number in one message of at most {MOST_PUSH_BYTES} bytes", (size,))
    told = message.uint(Option.CONTENT_FORMAT)
    try:
        value = _number(message.payload, told)
    except Unreadable as err:
        unknown = str(err).startswith("content format")
        raise Refused(Code.UNSUPPORTED_FORMAT if unknown else Code.BAD_REQUEST, str(err).partition("; set")[0]) from err
    low, high = info.minimum, info.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        limits = f"{'-inf' if low is None else f'{low:g}'} to {'inf' if high is None else f'{high:g}'} {info.unit}".strip()
        raise Refused(Code.BAD_REQUEST, f"{info.channel}: expected {limits}, got {value:g}")
    return value


def _number(payload: bytes, told: int | None) -> float:
    """A bare number, SenML, or a map with the number as `value`."""
    try:
        return number(payload, told)
    except Unreadable as err:
        try:
            return number(payload, told, field="value")
        except Unreadable:
            raise err from None


def _quality(query: Mapping[str, str]) -> Quality:
    word = query.get("quality", "good")
    if word not in _QUALITIES:
        raise Refused(Code.BAD_REQUEST, f"quality: expected {', '.join(_QUALITIES)}, got `{word[:40]}`")
    return _QUALITIES[word]


def _formatted(request: Request, forms: Mapping[int, Callable[[], bytes]]) -> Content:
    """In the form that the request accepts; in the first when it does not say."""
    chosen = next(iter(forms)) if request.accept is None else request.accept
    if chosen not in forms:
        raise Refused(Code.NOT_ACCEPTABLE, f"expected Accept to be one of {', '.join(map(str, forms))}, got {chosen}")
    return Content(Code.CONTENT, forms[chosen](), chosen)


def _text(document: Mapping[str, Any]) -> bytes:
    """A reading as number and unit, an actuator as its state; `nan` and `unknown` for what is not known."""
    if "unit" not in document:
        return str(document["state"] if document["state"] is not None else "unknown").encode()
    value = document["value"]
    return f"{'nan' if value is None else f'{value:.9g}'} {document['unit']}".strip().encode()


def _link(path: str, kind: str, form: int | None, observable: bool) -> str:
    told = "" if form is None else f";ct={form}"
    return f'<{path}>;rt="{kind}"{told}{";obs" if observable else ""}'


def _fits(link: str, query: Mapping[str, str]) -> bool:
    """RFC 6690, section 4.1, for the attributes that are told here."""
    path, _, rest = link.partition(">")
    attributes = {"href": path[1:], **{key: value.strip('"') for key, _, value in (part.partition("=") for part in rest.split(";"))}}
    return all(
        attributes.get(key, "").startswith(wanted[:-1]) if wanted.endswith("*") else attributes.get(key) == wanted
        for key, wanted in query.items()
    )
