"""The routes: who asks, what for, and how the answer is written."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

import trio
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from coordinator.gateway.auth import ApiKey, Authenticator
from coordinator.gateway.limits import RequestLimits
from coordinator.gateway.metrics import GatewayMetrics
from coordinator.gateway.ports import GenerationRequest, Generations, ModelCard, Refused
from coordinator.gateway.running import Running, stopping_refusal, unless_gone
from coordinator.gateway.schemas import ChatRequest, CompletionRequest
from coordinator.gateway.shapes import (
    ChatShape,
    CompletionShape,
    Shape,
    model_json,
    sources_json,
    stats_json,
)
from coordinator.gateway.sse import ChunkWriter, GenerationStream
from coordinator.gateway.tokenizing import Tokenizing

_RETRY_WHILE_LOADING_S = 2


class Gateway:
    """What the routes share."""

    def __init__(
        self,
        generations: Generations,
        auth: Authenticator,
        limits: RequestLimits,
        metrics: GatewayMetrics,
        stop: trio.Event,
        num_nodes: Callable[[], int],
    ) -> None:
        self.generations, self.metrics, self._stop = generations, metrics, stop
        self.num_nodes = num_nodes
        self._auth, self._limits = auth, limits
        self._tokenizing = Tokenizing()

    async def authenticate(self, request: Request) -> tuple[ApiKey, str]:
        """The key and the name to count its requests under. Raises Refused(401 or 429)."""
        address = f"address {request.client.host if request.client else ''}"
        try:
            key = await self._auth.authenticate(request.headers.get("authorization"))
        except Refused:
            self._limits.hit(address)  # guessing keys is limited too
            raise
        caller = f"key {key.id}" if key.id else address
        self._limits.hit(caller)
        return key, caller

    def card(self, model: str) -> ModelCard:
        cards = self.generations.models()
        for card in cards:
            if card.id == model:
                return card
        served = ", ".join(f"'{card.id}'" for card in cards)
        text = f"The model '{model}' does not exist here. This server has {served}."
        raise Refused(404, "model_not_found", text, param="model")

    async def chat(self, request: Request, body: ChatRequest, who: tuple[ApiKey, str]) -> Response:
        card = self._ready_card(body.model)

        def encode() -> tuple[int, ...]:
            return self.generations.encode_chat([message.plain() for message in body.messages])

        wanted = partial(self._wanted, body, encode, card, who)
        return await self._answer(request, body, wanted, ChatShape(card.id, body.wants_usage), who)

    async def completion(
        self, request: Request, body: CompletionRequest, who: tuple[ApiKey, str]
    ) -> Response:
        card = self._ready_card(body.model)

        def encode() -> tuple[int, ...]:
            return body.prompt_ids(self.generations.encode)

        wanted = partial(self._wanted, body, encode, card, who)
        shape = CompletionShape(card.id, body.wants_usage)
        return await self._answer(request, body, wanted, shape, who)

    def _ready_card(self, model: str) -> ModelCard:
        if self._stop.is_set():
            raise stopping_refusal()
        is_ready, reason = self.generations.is_ready()
        if not is_ready:
            raise Refused(503, "not_ready", reason, retry_after_s=_RETRY_WHILE_LOADING_S)
        return self.card(model)

    async def _wanted(
        self,
        body: ChatRequest | CompletionRequest,
        encode: Callable[[], tuple[int, ...]],
        card: ModelCard,
        who: tuple[ApiKey, str],
    ) -> GenerationRequest:
        key, caller = who
        prompt_ids = await self._tokenizing.run(caller, encode)
        param = "messages" if isinstance(body, ChatRequest) else "prompt"
        if not prompt_ids:
            raise Refused(400, "invalid_value", "The prompt holds no token.", param=param)
        max_tokens = body.token_limit()
        num_wanted = len(prompt_ids) + (max_tokens or 1)
        if num_wanted > card.max_context:
            text = (
                f"The context of '{card.id}' is {card.max_context} tokens; the prompt has "
                f"{len(prompt_ids)} and {max_tokens or 1} more were asked for."
            )
            raise Refused(400, "context_length_exceeded", text, param=param)
        if max(prompt_ids) >= card.vocab_size:
            text = f"A token id of the prompt is not below {card.vocab_size}."
            raise Refused(400, "invalid_value", text, param=param)
        return GenerationRequest(
            model=card.id,
            prompt_ids=prompt_ids,
            sampling=body.sampling(),
            seed=body.seed,
            max_tokens=max_tokens,
            stop=body.stop_strings(),
            volunteers=body.volunteers or key.volunteers,
            key_id=key.id,
            ignore_eos=bool(body.ignore_eos),
        )

    async def _answer(
        self,
        request: Request,
        body: ChatRequest | CompletionRequest,
        wanted: Callable[[], Awaitable[GenerationRequest]],
        shape: Shape,
        who: tuple[ApiKey, str],
    ) -> Response:
        since = request.state.since
        running = Running(self.generations, self._limits, self.metrics, wanted, who[1], since)
        if body.stream:
            writer = ChunkWriter(
                shape, wants_usage=body.wants_usage, wants_sources=body.wants_sources
            )
            return GenerationStream(running, writer, self._stop)
        full = await unless_gone(request.receive, self._stop, running.collect)
        if full is None:
            return Response(status_code=499)  # nobody reads it; the number is for the count
        answer = shape.whole(full)
        if body.wants_sources:
            token_ids = [token.token_id for token in full.tokens]
            extension = stats_json(full.stats) | {"token_ids": token_ids}
            answer |= {"specedge": extension | sources_json(full.tokens)}
        return JSONResponse(answer)


def _gateway(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)  # noqa: S101 - set by create_app
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway)]


async def _caller(request: Request, gateway: GatewayDep) -> tuple[ApiKey, str]:
    return await gateway.authenticate(request)


CallerDep = Annotated[tuple[ApiKey, str], Depends(_caller)]

router = APIRouter()


@router.get("/v1/models")
async def list_models(gateway: GatewayDep, who: CallerDep) -> Response:
    data = [model_json(card) for card in gateway.generations.models()]
    return JSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, gateway: GatewayDep, who: CallerDep) -> Response:
    return JSONResponse(model_json(gateway.card(model)))


@router.post("/v1/chat/completions")
async def create_chat_completion(
    request: Request, body: ChatRequest, gateway: GatewayDep, who: CallerDep
) -> Response:
    return await gateway.chat(request, body, who)


@router.post("/v1/completions")
async def create_completion(
    request: Request, body: CompletionRequest, gateway: GatewayDep, who: CallerDep
) -> Response:
    return await gateway.completion(request, body, who)


@router.get("/healthz")
async def healthz(gateway: GatewayDep) -> Response:
    """Whether the process lives; 200 also while the engine is away."""
    is_ready, reason = gateway.generations.is_ready()
    engine = {"ready": is_ready, "reason": reason}
    return JSONResponse({"status": "ok", "engine": engine, "num_nodes": gateway.num_nodes()})


@router.get("/readyz")
async def readyz(gateway: GatewayDep) -> Response:
    """200 when requests can be served now, else 503 and why."""
    is_ready, reason = gateway.generations.is_ready()
    if is_ready:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready", "reason": reason}, 503)


@router.get("/metrics", include_in_schema=False)
async def metrics(gateway: GatewayDep) -> Response:
    return Response(await gateway.metrics.render(), media_type=CONTENT_TYPE_LATEST)
