"""A record format of your own: multiple-choice questions as chats.

Copy this file to the directory you run align in. For {"question": "2+2?", "choices": ["3", "4"], "answer": 1}:

    align fit --config recipes/tiny/sft.yaml --data.init_args.train quiz.jsonl \
        --data.init_args.format record_format.MultipleChoice --data.init_args.format.init_args.letters 1234
"""

from dataclasses import dataclass

from align.data.formats import Chat, ChatFormat, Fields, required, text


@dataclass(frozen=True)
class MultipleChoice(ChatFormat):
    """A question with its choices, one per line; the response is the letter and the text of the right one."""

    fields = ("question", "choices", "answer")
    letters: str = "ABCDEFGHIJ"
    """Names of the choices, in order"""

    def messages(self, record: Fields) -> Chat:
        """See ``ChatFormat``."""
        choices, answer = required(record, "choices"), required(record, "answer")
        if not isinstance(choices, list) or not 1 <= len(choices) <= len(self.letters):
            raise ValueError(f"field 'choices' must be a list of 1 to {len(self.letters)} texts, found {choices!r}")
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise ValueError(f"field 'answer' is {answer!r}; it must be from 0 to {len(choices) - 1}")
        lines = [f"{letter}. {choice}" for letter, choice in zip(self.letters, choices, strict=False)]
        return [
            {"role": "user", "content": "\n".join([text(record, "question"), *lines])},
            {"role": "assistant", "content": lines[answer]},
        ]
