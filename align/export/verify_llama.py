"""Load a GGUF export in llama.cpp, through xllamacpp, to verify it."""

import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch

from align.export.extra import need
from align.export.verify import Greedy
from align.io.gguf.container import open_container
from align.model.attention import soft_capped


class LlamaReading:
    """A GGUF file in llama.cpp's server, in this process; see ``verify.Reading``.

    Runs with a float32 cache and without flash attention, so that only the file can differ. Logits are llama.cpp's
    hidden states after the final norm, one request per sequence, times the file's output matrix in float32 (Gemma: soft
    capped): the server returns the probabilities of a whole vocabulary for one position at a time only.

    Args:
        file: the export.
        context: longest sequence, prompt and response, tokens.
        vocab_size: rows of the network's output matrix.

    Raises:
        ModuleNotFoundError: xllamacpp is not installed.
        ValueError: llama.cpp can't load the file, or its output matrix has other rows.
    """

    def __init__(self, file: Path, *, context: int, vocab_size: int) -> None:
        """Load the file."""
        llama: Any = need("xllamacpp", "--verify of format gguf")
        from importlib.metadata import version

        self.switched_off: dict[str, Any] = {}  # a GGUF file has no such settings
        self.name = f"llama.cpp (xllamacpp {version('xllamacpp')})"
        params = llama.CommonParams()
        params.model.path = str(file)
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_parallel, params.n_gpu_layers = 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.embedding, params.embd_normalize = True, -1
        params.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
        params.warmup, params.verbosity, params.use_jinja = False, -1, True
        try:
            self.server = llama.Server(params)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.name} can't load {file.name}: {error}") from error
        self.output, self.cap = output_matrix(file), logit_cap(file)
        if len(self.output) != vocab_size:
            raise ValueError(f"{file.name}: the output matrix has {len(self.output)} rows; the source has {vocab_size}")

    def tokenize(self, text: str) -> list[int]:
        """See ``verify.Reading``."""
        return list(self._post("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"])

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """See ``verify.Reading``; as in llama.cpp's chats, the tokenizer adds the begin-of-text token."""
        text = self._post("/apply-template", {"messages": messages})["prompt"]
        return list(self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"])

    def logprobs(self, ids: list[int], start: int) -> torch.Tensor:
        """See ``verify.Reading``."""
        (reply,) = self._post("/embeddings", {"content": ids, "embd_normalize": -1})
        hidden = torch.tensor(reply["embedding"][start - 1 : -1])
        return torch.log_softmax(soft_capped(hidden @ self.output.T, self.cap), -1)

    def respond(self, rows: list[list[int]], max_new_tokens: int) -> list[Greedy]:
        """See ``verify.Reading``."""
        request = {"n_predict": max_new_tokens, "temperature": 0, "return_tokens": True, "cache_prompt": True}
        found = [self._post("/completion", {"prompt": ids, **request}) for ids in rows]
        return [Greedy(list(one["tokens"]), str(one["content"])) for one in found]

    def score(self, ids: list[int]) -> float:
        """Reward models are not exported to GGUF."""
        raise NotImplementedError

    def close(self) -> None:
        """See ``verify.Reading``: the server stops when it is garbage-collected."""
        del self.server

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request to the server, which listens on this machine only."""
        request = Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request) as reply:  # noqa: S310
            return json.loads(reply.read())


def output_matrix(file: Path) -> torch.Tensor:
    """``[V, D]`` float32: the output matrix of a GGUF file, or its embedding if they are tied."""
    gguf = need("gguf", "--verify of format gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    found = tensors.get("output.weight", tensors["token_embd.weight"])
    return torch.tensor(gguf.quants.dequantize(found.data, found.tensor_type)).float()


def logit_cap(file: Path) -> float | None:
    """The soft cap of a GGUF file's logits; None: it has none."""
    values = open_container(file).values
    cap: float | None = values.get(f"{values['general.architecture']}.final_logit_softcapping")
    return cap
