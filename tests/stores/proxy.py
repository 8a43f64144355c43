"""A proxy in front of an emulated object store: counts requests, delays them, and spoils them by a seeded plan.

For Google Cloud Storage it also adds what gcp-storage-emulator lacks and TensorStore needs: the generation of an object
as a header, preconditions (``ifGenerationMatch``), ranges of names in lists, empty objects, and 404 for a bucket that
is not there.
"""

import collections
import dataclasses
import http.client
import http.server
import json
import random
import socket
import struct
import threading
import time
import urllib.parse
from typing import Any

FAULTS = ("429", "500", "503", "reset before", "reset after", "stall", "truncated")
_HOP = ("transfer-encoding", "connection", "keep-alive", "content-length")
_JSON = {"Content-Type": "application/json"}


@dataclasses.dataclass
class Plan:
    """Which requests are spoiled.

    Attributes:
        seed: of the dice.
        share: of the requests that are spoiled.
        most: so many at most.
        kinds: of ``FAULTS``.
        stall: seconds for which a stalled request is silent before its connection is cut.
    """

    seed: int = 0
    share: float = 0.0
    most: int = 10**9
    kinds: tuple[str, ...] = FAULTS
    stall: float = 3.0


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Proxy:
    """Listens on a port of this machine until it is closed.

    Attributes:
        delay: seconds that each request takes longer.
        status: answer every request so, such as 401 (credentials expired) or 403; 0 = do not.
        gone: cut every connection.
        counts: requests by method.
        journal: time, method and target of each.
        sent: bytes of bodies to the store.
        received: bytes of bodies from the store.
        spoiled: faults by kind.
    """

    def __init__(self, upstream: str, google: bool):
        """Args: HOST:PORT of the emulator; whether it is that of Google Cloud Storage."""
        self.upstream, self.google = upstream, google
        self.delay, self.status, self.gone, self.denied_writes = 0.0, 0, False, False
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self.plan(Plan())
        self.reset_counts()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def plan(self, plan: Plan) -> None:
        self._plan, self._dice = plan, random.Random(plan.seed)
        self.spoiled: collections.Counter[str] = collections.Counter()

    def reset_counts(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.journal: list[tuple[float, str, str]] = []
        self.sent = self.received = 0

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self) -> str:
        """What happens to the next request; "" = nothing."""
        with self._lock:
            if self._dice.random() >= self._plan.share or self.spoiled.total() >= self._plan.most:
                return ""
            kind = self._dice.choice(self._plan.kinds)
            self.spoiled[kind] += 1
            return kind

    def stall(self) -> None:
        time.sleep(self._plan.stall)

    def ask(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """The answer to a request, from the emulator."""
        with self._lock:
            self.counts[method] += 1
            self.journal.append((time.monotonic(), method, urllib.parse.unquote(target)))
            self.sent += len(body)
        if self.status or (self.denied_writes and method != "GET" and method != "HEAD"):
            status = self.status or 403
            answer = Answer(status, _JSON, json.dumps({"error": {"code": status, "message": "refused"}}).encode())
        elif self.google:
            answer = self._google(method, target, headers, body)
        else:
            answer = self._forward(method, target, headers, body)
        with self._lock:
            self.received += len(answer.body)
        return answer

    def _forward(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            connection.request(method, target, body, headers)
            found = connection.getresponse()
            kept = {name: value for name, value in found.getheaders() if name.lower() not in _HOP}
            return Answer(found.status, kept, found.read())
        finally:
            connection.close()

    def _google(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        parts = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(parts.query))
        path = parts.path.removeprefix("/upload").split("/")  # "", storage, v1, b, BUCKET, o, NAME
        bucket, name = path[4], query.get("name") or urllib.parse.unquote("/".join(path[6:]))
        here = f"/storage/v1/b/{bucket}"
        if self._forward("GET", here, {}, b"").status != 200:
            return Answer(404, _JSON, b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}')
        if method == "GET" and not name:
            return _listed(self._forward(method, target, headers, body), query)
        about = f"{here}/o/{urllib.parse.quote(name, safe='')}"
        with self._writing:
            found = self._forward("GET", about, {}, b"")
            generation = json.loads(found.body)["generation"] if found.status == 200 else "0"
            if query.get("ifGenerationMatch", generation) != generation:
                return Answer(412, _JSON, b'{"error": {"code": 412, "message": "conditionNotMet"}}')
            if query.get("ifGenerationNotMatch") == generation:
                return Answer(304, {}, b"")
            if query.get("uploadType") == "media" and not body:
                target, headers, body = _empty(bucket, name)
            answer = self._forward(method, target, headers, body)
        if method == "GET" and query.get("alt") == "media":
            answer.headers["x-goog-generation"] = generation
        return answer


def _empty(bucket: str, name: str) -> tuple[str, dict[str, str], bytes]:
    """The upload of an empty object in several parts, since the emulator fails at an empty body."""
    parts = (b"Content-Type: application/json\r\n\r\n{}", b"Content-Type: application/octet-stream\r\n\r\n")
    body = b"".join(b"--cut\r\n" + part + b"\r\n" for part in parts) + b"--cut--\r\n"
    target = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart&name={urllib.parse.quote(name, safe='')}"
    return target, {"Content-Type": "multipart/related; boundary=cut"}, body


def _listed(answer: Answer, query: dict[str, str]) -> Answer:
    """A list of objects without those outside of the range that was asked for."""
    found: dict[str, Any] = json.loads(answer.body)
    first, last = query.get("startOffset", ""), query.get("endOffset")
    found["items"] = [
        item for item in found.get("items", []) if item["name"] >= first and (last is None or item["name"] < last)
    ]
    return Answer(answer.status, answer.headers, json.dumps(found).encode())


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that cut connections are part of what is tried."""


def _handler(proxy: Proxy) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if proxy.gone:
                return self._cut()
            time.sleep(proxy.delay)
            fault = proxy.fault()
            if fault == "stall":
                proxy.stall()
            if fault in ("stall", "reset before"):
                return self._cut()
            if fault.isdigit():
                return self._send(Answer(int(fault), _JSON, b'{"error": {"message": "spoiled"}}'), None)
            answer = proxy.ask(self.command, self.path, dict(self.headers), body)
            if fault == "reset after":
                return self._cut()
            return self._send(answer, len(answer.body) // 2 if fault == "truncated" else None)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _serve

        def _send(self, answer: Answer, cut_at: int | None) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("date", "server"):
                    self.send_header(name, value)
            if answer.status != 304:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[:cut_at])
            if cut_at is not None:
                self.wfile.flush()
                self._cut()

        def _cut(self) -> None:
            """Ends the connection with a reset."""
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    return Handler
