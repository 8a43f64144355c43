"""The server: its routes, and how long an answer is computed for whom."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from scaling.serve import requests
from scaling.serve.answers import Answering, Shape
from scaling.serve.guard import PAGE_HEADERS, Guard, body_of, refused
from scaling.serve.models import Model
from scaling.serve.rank_routes import rank_routes
from scaling.serve.ranking import Rankings
from scaling.serve.refusals import Refusal
from scaling.serve.turns import Turns

Parse = Callable[[dict[str, Any], Mapping[str, Model]], requests.Ask]


def make_app(
    models: Mapping[str, Model], key: str | None = None, local: bool = True, rankings: Rankings | None = None
) -> Starlette:
    """The ASGI application.

    Args:
        models: by name.
        key: of the API; None = everybody may use it.
        local: whether only this machine is served.
        rankings: the page is the one for rankings; None = for a conversation.
    """
    turns = Turns()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(turns.close)

    page = Path(__file__).with_name("chat.html" if rankings is None else "rank.html").read_text(encoding="utf-8")

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    routes = [Route("/", show), *_api(models, turns)]
    if rankings is not None:
        routes += rank_routes(rankings, turns)
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, key=key, local=local)],
        exception_handlers={Refusal: refused, HTTPException: refused, Exception: refused},
        lifespan=lifespan,
    )


def _api(models: Mapping[str, Model], turns: Turns) -> list[Route]:
    began = int(time.time())

    def described(model: Model) -> dict[str, Any]:
        more = {"context_length": model.context, "chat": model.chat is not None}
        return {"id": model.name, "object": "model", "created": began, "owned_by": "scaling", **more}

    async def listed(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(model) for model in models.values()]})

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in models:
            raise Refusal(f"there is no model {name!r}", status=404, param="model", code="model_not_found")
        return JSONResponse(described(models[name]))

    def answers(parse: Parse, chats: bool) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            fields = requests.parse(await body_of(request))
            ask = await asyncio.to_thread(parse, fields, models)  # a long text takes a while to be tokenized
            return await _answer(request, ask, chats, turns)

        return answer

    return [
        Route("/v1/models", listed),
        Route("/v1/models/{name:path}", one),
        Route("/v1/completions", answers(requests.completion, False), methods=["POST"]),
        Route("/v1/chat/completions", answers(requests.chat, True), methods=["POST"]),
    ]


async def _answer(request: Request, ask: requests.Ask, chats: bool, turns: Turns) -> Response:
    answering, shape = Answering(ask, turns), Shape(ask, chats)
    if ask.streams:
        return _Stream(answering, shape)
    gone = asyncio.create_task(_gone(request))
    found = asyncio.create_task(answering.whole())
    try:
        await asyncio.wait({gone, found}, return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(shape.whole(found.result()))
    finally:
        answering.stop()
        gone.cancel()
        found.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client is."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """An answer as it grows. Its computation ends with the response, whatever ends that."""

    def __init__(self, answering: Answering, shape: Shape) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(shape.events(answering.pieces()), media_type="text/event-stream", headers=headers)
        self._answering = answering

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answering.stop()
