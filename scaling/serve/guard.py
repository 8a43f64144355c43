"""What every request passes: the name of the host, the key, the size of the body, and errors in one style."""

import hmac
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from scaling.serve.refusals import Refusal

LARGEST_BODY = 1 << 20  # bytes
PAGE_HEADERS = {
    # The page is one file: nothing is loaded from elsewhere, whatever is in it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """An ASGI application around another.

    Args:
        app: the application.
        key: that requests must have, except that for the page, which holds nothing secret; None = no key. ASCII.
        local: whether only this machine is served. Then requests must name it as their host: a page of another site
            whose name suddenly means this machine (DNS rebinding) names that site.
    """

    def __init__(self, app: Any, key: str | None, local: bool) -> None:
        self._app, self._key, self._local = app, key, local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await refused(None, refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Any) -> Refusal | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        if self._local and host not in ("localhost", "127.0.0.1", "[::1]"):
            return Refusal("this server serves localhost only", status=403, code="wrong_host")
        if self._key is None or scope["path"] == "/":
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if hmac.compare_digest(given.encode("latin-1"), self._key.encode()):
            return None
        what = "wrong API key" if given else "an API key is needed, as in 'Authorization: Bearer KEY'"
        return Refusal(what, status=401, code="invalid_api_key")


async def body_of(request: Request) -> bytes:
    """The body of a request.

    Raises:
        Refusal: it is too large, or not sent as JSON, which a form of another site cannot send.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal("the body must be sent with Content-Type: application/json", status=415)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise Refusal(f"the body has more than {LARGEST_BODY:,} bytes", status=413, code="too_large")
    return body


def refused(_: Request | None, error: Exception) -> Response:
    """The response to an error, in OpenAI's style."""
    if isinstance(error, HTTPException):
        error = Refusal(f"{error.detail}; see /v1/models", status=error.status_code)
    if not isinstance(error, Refusal):
        error = Refusal("the server failed; its log says why", status=500, kind="server_error")
    return JSONResponse(error.body, status_code=error.status)
