"""A model of align as lm-evaluation-harness sees it.

Texts become ids as in ``lm_eval --model hf`` on an exported directory, so that both agree on every item; the answers
come from align's own batched log-likelihoods and sampling.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from align.generation.likelihood import Continuation, likelihoods
from align.generation.responses import sample_responses
from align.generation.sampling import response_seed
from align.generation.sampling_config import SamplingConfig
from align.generation.stop_texts import StopTexts
from align.io.progress import progress_bar
from align.model.gpt import GPT
from align.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256
"""Longest response of a task that sets no limit, tokens; the harness's own default"""


class HarnessModel(TemplateLM):
    """Log-likelihoods and responses of a network for the harness's tasks.

    Args:
        network: in evaluation mode.
        tokenizer: the network's own.
        batch_size: responses sampled at once.
        seed: of sampling, for tasks that set a temperature.
    """

    def __init__(self, network: GPT, tokenizer: Tokenizer, *, batch_size: int = 64, seed: int = 0) -> None:
        """Keep them."""
        super().__init__()
        self.network, self.tokens, self.batch_size, self.seed = network, tokenizer, batch_size, seed
        self._device = network.output_weight.device

    # Text to ids, as the harness's model ``hf`` does it.

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text.

        Raises:
            ValueError: the tokenizer has none.
        """
        if self.tokens.eos_id is None:
            raise ValueError("the tokenizer has no eos token; set eos_token in tokenizer_config.json")
        return self.tokens.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: bos, else eos."""
        return self.eot_token_id if self.tokens.bos_id is None else self.tokens.bos_id

    @property
    def max_length(self) -> int:
        """Most tokens that the network reads."""
        return self.network.config.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, in which names of special tokens stand for them, as everywhere in the harness.

        Args:
            string: the text.
            add_special_tokens: begin with what the tokenizer puts before a text; None: unless the text begins with it.
            **kwargs: of no use here.
        """
        ids = self.tokens.encode_template(string)
        begins = add_special_tokens is not False and ids[:1] != [self.prefix_token_id]
        added = map(self.tokens.spec.id_of, self.tokens.spec.added_before if begins else ())
        return [*(number for number in added if number is not None), *ids]

    # What tasks ask.

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        asked = [Continuation(context, ids) for _, context, ids in requests]
        with progress_bar("log-likelihoods", len(asked)) as advance:
            for number, likelihood in likelihoods(self.network, asked):
                found[number] = (likelihood.logprob, likelihood.greedy)
                if requests[number][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], found[number])
                advance(1)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the context in which every token is counted once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            if ids[:1] == [self.prefix_token_id]:
                ids = ids[1:]  # it is the prefix; counted as a target it would follow itself
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                context, targets = make_disjoint_window(window)
                windows.append((None, context, targets))
                owner.append(number)
        totals = [0.0] * len(requests)
        for number, (logprob, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Responses, each up to the first of its stop texts."""
        texts = [""] * len(requests)
        with progress_bar("responses", len(requests)) as advance:
            for numbers, settings in self._by_settings(requests):
                self._respond(requests, numbers, settings, texts, advance)
        return texts

    def _by_settings(self, requests: Sequence[Instance]) -> Iterator[tuple[list[int], Mapping[str, Any]]]:
        """Batches of requests with the same settings, the longest prompts first."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for group in groups.values():
            group.sort(key=lambda number: -len(requests[number].args[0]))
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size], requests[group[0]].args[1]

    def _respond(
        self,
        requests: Sequence[Instance],
        numbers: Sequence[int],
        settings: Mapping[str, Any],
        texts: list[str],
        advance: Callable[[int], None],
    ) -> None:
        given = dict(normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS))
        eos = self.tokens.decode([self.eot_token_id], skip_special=False)
        stops = [stop for stop in handle_stop_sequences(given.pop("until"), eos=eos) if stop]
        sampling = _sampling(given)
        room = self.max_length - sampling.max_new_tokens
        if room < 1:
            raise ValueError(
                f"the task asks for {sampling.max_new_tokens} new tokens, which leaves no room for a prompt in the "
                f"context of {self.max_length}; set max_gen_toks lower"
            )
        prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
        ends = StopTexts(self.tokens, stops, rows=len(prompts))
        responses = sample_responses(
            self.network,
            self.tokens,
            prompts,
            sampling,
            seeds=[response_seed(self.seed, number, 0) for number in numbers],
            on_token=ends,
        )
        for number, text in zip(numbers, responses.texts, strict=True):
            texts[number] = postprocess_generated_text(text, stops, None)
            self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
            advance(1)

    # Chats.

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in the harness's cache of requests."""
        return self.tokens.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's chat template; None if it is not asked for."""
        return self.tokens.spec.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat.

        Args:
            chat_history: messages.
            add_generation_prompt: end with the beginning of the assistant's turn; False: end inside the last message,
                which the model continues.

        Raises:
            ValueError: the tokenizer has no chat template, or it refuses the messages.
        """
        from align.tokenizer.chat_template import check_messages, check_template
        from align.tokenizer.jinja_template import template_of

        check_template(self.tokens)
        template = template_of(self.tokens.spec)
        text = template.render(check_messages(chat_history), add_generation_prompt=add_generation_prompt).plain
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def get_model_info(self) -> dict[str, Any]:
        """What results record of the model."""
        return {
            "model_num_parameters": self.network.num_parameters(),
            "model_dtype": str(self.network.output_weight.dtype),
        }


def _sampling(settings: dict[str, Any]) -> SamplingConfig:
    """The sampling of a task.

    Raises:
        ValueError: the task sets something else than a temperature, filters and a length.
    """
    greedy = not settings.pop("do_sample", False)
    temperature = settings.pop("temperature", 0.0)
    filters = {name: settings.pop(name) for name in ("top_k", "top_p", "repetition_penalty") if name in settings}
    longest = settings.pop("max_gen_toks")
    if settings:
        names = ", ".join(map(str, settings))
        raise ValueError(f"the task's generation_kwargs set {names}, which align's sampling does not have; remove them")
    return SamplingConfig(temperature=0.0 if greedy else temperature, max_new_tokens=longest, **filters)
