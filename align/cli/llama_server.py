"""llama.cpp's server, through xllamacpp, as the program that `align serve` starts.

A process of its own, because the binding's server can't be stopped while a response is streamed.
"""

import json
import os
import signal
import sys
from typing import Any


def main(words: dict[str, Any]) -> None:
    """Serve until SIGINT, SIGTERM or the end of the input, which comes when the parent dies.

    Args:
        words: ``file``, ``name``, ``host``, ``port``, ``slots``, ``context`` (tokens of a slot) and ``threads``; the
            key is in the environment variable LLAMA_API_KEY.
    """
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path, params.model_alias = words["file"], {words["name"]}
    params.hostnames, params.port = [words["host"]], words["port"]
    params.api_keys = [key] if (key := os.environ.get("LLAMA_API_KEY")) else []
    # llama.cpp counts the contexts of all slots together.
    params.n_parallel, params.n_ctx = words["slots"], words["slots"] * words["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = words["threads"]
    # A request that names no setting samples from the model's own distribution, as with OpenAI's API and vLLM.
    params.sampling.temp, params.sampling.top_k = 1.0, 0
    params.sampling.top_p, params.sampling.min_p = 1.0, 0.0
    params.use_jinja, params.verbosity = True, 1  # errors only
    server = llama.Server(params)
    for number in (signal.SIGINT, signal.SIGTERM):  # llama.cpp took them over
        signal.signal(number, lambda *_: os._exit(0))
    while os.read(0, 4096):
        pass
    del server
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
