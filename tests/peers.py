"""Small tokenizers of the `tokenizers` library, one for each kind that public models use."""

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as PeerTokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind; it's asleep.\n",
    "    def area(self, width=12, height=345):\n        return width * height  # 4140\n\n\n",
    "Größe, naïve café, Ærøskøbing; Привет, мир! Καλημέρα κόσμε.\r\n",
    "人工智能正在改变世界。日本語のテキスト、한국어 텍스트.\n",
    "Emoji: 😀😃 👩‍👩‍👧‍👦 🇩🇪, marks: e\u0301 a\u0308 \u1100\u1161\u11a8, math: 𝒳𝓎 𝟘𝟙.\n",
    "She said: 'I'LL go', he'd've WE'RE. 1234567 ½ Ⅷ ٣٤٥ \t\t x\u00a0y\u2028z\n",
    "=========== -------- !!!??? ((((())))) 'tis it'ſ     \n",
]
CORPUS = [f"{a}{b}{a}" for a in SENTENCES for b in SENTENCES]


def peer_trained(pattern: str | None, vocab_size: int = 600, **model: object) -> PeerTokenizer:
    """A byte-level BPE of the `tokenizers` library; pattern None: ByteLevel's own (GPT-2)."""
    peer = PeerTokenizer(models.BPE(**model))
    if pattern is None:
        peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        peer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    peer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    peer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return peer


def _sentencepiece_bpe(pieces: list[str], specials: list[str], size: int = 500) -> models.BPE:
    """A BPE whose merges are all pairs that make a token, in order of the tokens, as converted from SentencePiece."""
    peer = PeerTokenizer(models.BPE())
    peer.normalizer = normalizers.Replace(" ", "▁")
    peer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    learned = [token for token, _ in sorted(peer.get_vocab().items(), key=lambda item: item[1])]
    letters = [token for token in learned if len(token) == 1 and token not in "🇩🇪漢"]
    words = [token for token in learned if len(token) > 1 and set(token) <= set(letters) and set(token) != {"▁"}]
    runs = ["▁" * n for n in range(16, 1, -1)]
    names = [*specials, *BYTES, *pieces, *words, *runs, *letters]
    vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
    merges = [
        (word[:i], word[i:]) for word in words for i in range(1, len(word)) if word[:i] in vocab and word[i:] in vocab
    ]
    # Runs of spaces have one score in SentencePiece's models: the longest left token is merged first.
    lengths = sorted(((i, n - i) for n in range(2, 17) for i in range(1, n)), reverse=True)
    merges += [("▁" * left, "▁" * right) for left, right in lengths]
    return models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def _bos(peer: PeerTokenizer, name: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(f"{name} $A", f"{name} $A {name} $B", [(name, peer.token_to_id(name))])


def llama() -> PeerTokenizer:
    """As Llama-2's and Mistral's first: every part of a text gets a space before it."""
    peer = PeerTokenizer(_sentencepiece_bpe([], ["<unk>", "<s>", "</s>"]))
    peer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    peer.decoder = decoders.Sequence(steps)
    peer.add_special_tokens(["<unk>", "<s>", "</s>"])
    peer.post_processor = _bos(peer, "<s>")
    return peer


def mistral() -> PeerTokenizer:
    """As Mistral's later SentencePiece ones: Metaspace, with a space before the whole text only."""
    peer = PeerTokenizer(_sentencepiece_bpe([], ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]))
    peer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    peer.decoder = decoders.Sequence(steps)
    peer.add_special_tokens(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    peer.post_processor = _bos(peer, "<s>")
    return peer


def gemma() -> PeerTokenizer:
    """As Gemma's: no space before a text, added tokens that are not special, a split that never applies."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    peer = PeerTokenizer(_sentencepiece_bpe(["\n\n", "<table>"], specials))
    peer.normalizer = normalizers.Replace(" ", "▁")
    peer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    peer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    peer.add_special_tokens(specials)
    peer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<table>", normalized=False)])
    peer.post_processor = _bos(peer, "<bos>")
    return peer


def unigram() -> PeerTokenizer:
    """As T5's and XLM-R's: Unigram, Metaspace before every word, no byte tokens."""
    peer = PeerTokenizer(models.Unigram())
    peer.normalizer = normalizers.NFKC()
    peer.pre_tokenizer = pre_tokenizers.Metaspace()
    peer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<extra>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    peer.train_from_iterator(CORPUS, trainer)
    return peer


def prefixed() -> PeerTokenizer:
    """Byte-level with a space before the text, and a token that is matched as a word only."""
    peer = peer_trained(None)
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    peer.add_tokens([AddedToken("fox", single_word=True)])
    return peer


def scripted() -> PeerTokenizer:
    """Byte-level with a pattern that other engines read differently."""
    peer = peer_trained(r"\p{Han}+|\w+|\s+|[^\w\s]+")
    peer.normalizer = normalizers.NFKC()
    peer.add_special_tokens(["<s>"])
    return peer
