"""Routes of the page on which a person ranks answers. They never say which model made an answer."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from scaling.serve import requests
from scaling.serve.answers import Answering
from scaling.serve.guard import body_of
from scaling.serve.ranking import Rankings, tries
from scaling.serve.refusals import Refusal
from scaling.serve.turns import Turns


def rank_routes(rankings: Rankings, turns: Turns) -> list[Route]:
    """``GET /rank`` shows the present prompt; ``POST /rank/{draft,done,skip,prompt}`` change it and show the next."""
    one_at_a_time = asyncio.Lock()  # two windows do not make the answers of one prompt twice

    async def show(_: Request) -> Response:
        async with one_at_a_time:
            return JSONResponse(await _shown(rankings, turns))

    async def change(request: Request) -> Response:
        fields = requests.parse(await body_of(request))
        made, what = str(fields.get("id")), request.path_params["what"]
        async with one_at_a_time:
            if what == "draft":
                rankings.draft(made, fields.get("ranks"))
                return JSONResponse(rankings.counts())
            if what == "done":
                rankings.rank(made, fields.get("ranks"))
            elif what == "skip":
                rankings.skip(made)
            elif what == "prompt":
                rankings.ask(requests.messages([{"role": "user", "content": fields.get("prompt")}])[0]["content"])
            else:
                raise Refusal(f"there is no /rank/{what}", status=404)
            return JSONResponse(rankings.counts())

    return [Route("/rank", show), Route("/rank/{what}", change, methods=["POST"])]


async def _shown(rankings: Rankings, turns: Turns) -> dict[str, Any]:
    item = rankings.current()
    if item is None:
        return {"item": None, **rankings.counts()}
    problem = None
    if not item["answers"]:
        try:
            rankings.keep(item, await _answers(rankings, item, turns))
        except Refusal as refusal:
            problem = str(refusal)
    shown = {
        "id": item["id"],
        "messages": item["messages"],
        "answers": [answer["text"] for answer in item["answers"]],
        "ranks": item["ranks"],
    }
    return {"item": shown, "problem": problem, **rankings.counts()}


async def _answers(rankings: Rankings, item: dict[str, Any], turns: Turns) -> list[dict[str, Any]]:
    """Answers with text and what made them. An empty one is drawn again, since it cannot be ranked.

    Raises:
        Refusal: there are not two answers with text.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for attempt in tries():
        for ask in rankings.asks(item, attempt):
            samples = ask.sampling.num_samples
            if all((ask.model.name, sample) in found for sample in range(samples)):
                continue
            for sample, completion in enumerate(await Answering(ask, turns).whole()):
                if completion.text.strip():
                    made_by = {
                        "model": ask.model.name,
                        "temperature": ask.sampling.temperature,
                        "top_p": ask.sampling.top_p,
                        "tokens": ask.sampling.tokens,
                        "seed": ask.sampling.seed,
                        "sample": sample,
                    }
                    found.setdefault((ask.model.name, sample), {"text": completion.text, **made_by})
        if len(found) == rankings.plan.count:
            break
    if len(found) < 2:
        raise Refusal("the models answer this prompt with empty texts; skip it", status=422, code="no_answers")
    return list(found.values())
