"""Split patterns of public tokenizers, as their tokenizer.json files write them."""

from align.tokenizer.splitting import PATTERNS

GPT2 = PATTERNS["gpt2"]
"""ByteLevel's own pattern: GPT-2, GPT-NeoX; after a split at each digit also SmolLM2"""

GPT2_LONG = GPT2.replace("'(?:[sdmt]|ll|ve|re)", "'s|'t|'re|'ve|'m|'ll|'d")
"""The same as GPT-2's own code writes it"""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama-3, SmolLM3, OLMo-2 (cl100k); ``PATTERNS["gpt4"]`` matches the same in less time"""

QWEN2 = LLAMA3.replace("{1,3}", "")
"""Qwen2, Qwen2.5 and Qwen3"""

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Mistral's byte-level tokenizers, from Nemo on"""

DIGIT = r"\p{N}"
DIGITS = r"\p{N}{1,3}"
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""DeepSeek-V3, after splits at runs of up to three digits and at runs of Chinese or Japanese characters"""

TOTAL = frozenset({GPT2, GPT2_LONG, PATTERNS["gpt4"], LLAMA3, QWEN2, TEKKEN})
"""Patterns that match every character of any text, so that keeping or dropping the rest is the same"""
