"""Byte-level BPE from scratch, chat rendering with loss masks, and tokenizer files."""

from align.tokenizer.bpe_training import train_tokenizer
from align.tokenizer.chat_template import RenderedChat
from align.tokenizer.tokenizer import StreamDecoder, Tokenizer

__all__ = ["RenderedChat", "StreamDecoder", "Tokenizer", "train_tokenizer"]
