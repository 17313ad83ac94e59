"""The calls of vLLM's server that align makes, answered by a function; needs neither torch nor align."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from aiohttp import web

Sample = Callable[[str, list[int], dict[str, Any]], tuple[list[int], list[float], bool]]
"""(weights directory, prompt, sampling parameters) -> ids, their log-probs, whether a stop id ended them"""


class FakeVLLM:
    """A server with one kind of failure, or none.

    Args:
        model: weights directory that it starts with.
        sample: answers requests.
        failure: what goes wrong; see the methods.
        context: of the model.
    """

    def __init__(self, model: str, sample: Sample, *, failure: str = "", context: int = 1000) -> None:
        self.model, self.sample, self.failure, self.context = model, sample, failure, context
        self.version, self.resets, self.requests, self.loaded = "default", 0, [], []
        self._connections: set[Any] = set()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**30, middlewares=[self.hang_up])
        app.add_routes(
            [
                web.get("/health", self.health),
                web.get("/weight_info", self.weight_info),
                web.get("/v1/models", self.models),
                web.post("/collective_rpc", self.reload),
                web.post("/update_weight_version", self.set_version),
                web.post("/reset_prefix_cache", self.reset),
                web.post("/inference/v1/generate", self.generate),
            ]
        )
        return app

    @web.middleware
    async def hang_up(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """With that failure, close a connection at the moment of its second request, as if it had been idle."""
        if self.failure == "hangs up" and request.transport in self._connections:
            request.transport.close()
        self._connections.add(request.transport)
        return await handler(request)

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self.failure == "never ready" else 200)

    async def weight_info(self, request: web.Request) -> web.Response:
        if self.failure == "takes no weights":
            return web.Response(status=404)
        return web.json_response({"weight_version": self.version})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"max_model_len": self.context}]})

    async def reload(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body["method"] == "reload_weights"
        if self.failure == "cannot reload":
            return web.json_response({"error": {"message": "no such tensor"}}, status=500)
        if self.failure != "keeps its weights" or not self.model:
            self.model = body["kwargs"]["weights_path"]
        self.loaded.append(self.model)
        return web.json_response({"results": [None]})

    async def set_version(self, request: web.Request) -> web.Response:
        self.version = (await request.json())["new_version"]
        return web.json_response({"success": True})

    async def reset(self, request: web.Request) -> web.Response:
        self.resets += 1
        return web.json_response({"success": self.failure != "busy cache"})

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        if self.failure == "dies":
            print("WARNING OSError: a limit", "RuntimeError: the card fell off", sep="\n")
            print("exceptions.EngineDeadError: see above", flush=True)
            os._exit(7)
        if self.failure == "hangs":
            await asyncio.sleep(1000)
        ids, logprobs, stopped = self.sample(self.model, body["token_ids"], body["sampling_params"])
        version = "someone else's" if self.failure == "other weights" else self.version
        choice: dict[str, Any] = {
            "token_ids": ids,
            "finish_reason": "stop" if stopped else "length",
            "logprobs": {"content": [{"token_id": t, "logprob": p} for t, p in zip(ids, logprobs, strict=True)]},
            "weight_versions": [{"version": version, "start": 0, "end": len(ids)}],
        }
        if self.failure == "aborts":
            choice["finish_reason"] = "abort"
        if self.failure == "old vLLM":
            del choice["weight_versions"]
        return web.json_response({"choices": [choice]})
