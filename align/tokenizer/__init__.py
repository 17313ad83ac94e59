"""Byte-level BPE from scratch, chat rendering with loss masks, and tokenizer files."""

from align.tokenizer.chat import RenderedChat
from align.tokenizer.streaming import StreamDecoder
from align.tokenizer.tokenizer import Tokenizer
from align.tokenizer.training import train_tokenizer

__all__ = ["RenderedChat", "StreamDecoder", "Tokenizer", "train_tokenizer"]
