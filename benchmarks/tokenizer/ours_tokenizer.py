"""align's side of the tokenizer benchmark: only what a user would call."""

from pathlib import Path

import numpy as np

from align.tokenizer import Tokenizer, train_tokenizer
from align.tokenizer.tokenizer import own_special_tokens


class Encoder:
    """A tokenizer and how many processes it may use."""

    def __init__(self, tokenizer: Tokenizer, processes: int) -> None:
        self.tokenizer = tokenizer
        self.processes = processes

    def encode_batch(self, docs: list[str]) -> list[list[int]]:
        return self.tokenizer.encode_batch(docs, processes=self.processes)


def bpe_train(docs: list[str], vocab: int, pattern: str, threads: int) -> Encoder:
    """Learn as many merges as peers do for this vocabulary; align's special tokens are added to them."""
    size = vocab + len(own_special_tokens(0))
    return Encoder(train_tokenizer(docs, vocab_size=size, pattern=pattern, processes=threads), threads)


def build_packed(docs: list[str], tokenizer_json: str, block: int, procs: int, out_dir: str) -> int:
    """Write the ids of all documents, each followed by <eos>, as one file of whole blocks; returns their number."""
    tokenizer = Tokenizer.load(tokenizer_json)
    end = tokenizer.special_tokens["<eos>"]
    ids, _ = tokenizer.encode_to_array(docs, suffix=[end], processes=procs)
    ids = ids[: len(ids) // block * block]
    np.save(Path(out_dir) / "packed.npy", ids.reshape(-1, block))
    return len(ids)
