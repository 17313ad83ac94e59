"""Rewards that check whether a response is JSON of a given form."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from align.rewards.fences import fenced
from align.rewards.reward import Reward, shown
from align.tokenizer.prompts import Prompt


@dataclass(frozen=True)
class JSONSchema(Reward):
    """1 if a response is JSON that a schema (json-schema.org) accepts, else 0.

    The JSON is the last fenced block of the response, or all of it without one. NaN and infinity, which Python's parser
    accepts, are not JSON. References to other documents are not followed.

    Raises:
        ValueError: the schema is invalid or can't be read, or the package jsonschema is missing.
    """

    schema: str | dict[str, Any]
    """A JSON schema, or a file that holds one; the draft is what its $schema names, else 2020-12"""

    def __post_init__(self) -> None:
        """Reject what is no schema."""
        _ = self._validator

    @cached_property
    def _validator(self) -> Any:
        if not isinstance(self.schema, str):
            return _validator(self.schema, "JSONSchema.schema")
        try:
            found = json.loads(Path(self.schema).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"JSONSchema.schema is {self.schema!r}, which can't be read as JSON: {error}") from error
        return _validator(found, self.schema)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """See ``Reward``."""
        return [_accepted(self._validator, response) for response in responses]


@dataclass(frozen=True)
class JSONSchemaColumn(Reward):
    """1 if a response is JSON that the schema in its record accepts, else 0; see ``JSONSchema``."""

    column: str = "schema"
    """Column of the schema: an object, or a text that holds one"""

    @property
    def columns(self) -> tuple[str, ...]:
        """The column of the schema."""
        return (self.column,)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], schemas: Sequence[Any]) -> list[float]:
        """See ``Reward``.

        Raises:
            ValueError: a schema is invalid, or the package jsonschema is missing.
        """
        where = f"column {self.column!r}"
        # Responses to a prompt share its schema.
        validators: dict[str, Any] = {}
        scores = []
        for response, schema in zip(responses, schemas, strict=True):
            key = schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True)
            if key not in validators:
                validators[key] = _validator(_parsed(schema, where), where)
            scores.append(_accepted(validators[key], response))
        return scores


def _parsed(schema: Any, where: str) -> Any:
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except ValueError as error:
        raise ValueError(f"{where} is {shown(schema)}, which is no JSON: {error}") from None


def _validator(schema: Any, where: str) -> Any:
    try:
        from jsonschema import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
    except ImportError as error:
        raise ValueError(
            f'JSON schemas need the package jsonschema ({error}): pip install "lightning-align[rewards]"'
        ) from error
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"{where} is {shown(schema)}; a JSON schema is an object, true or false")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"{where} is no JSON schema: {error.message} at {error.json_path}") from None
    # With a registry of its own, the validator does not download what $ref names.
    return kind(schema, registry=Registry())


def _accepted(validator: Any, response: str) -> float:
    try:
        value = json.loads(fenced(response, "json") or response, parse_constant=_refuse)
    except (ValueError, RecursionError):  # also integers of thousands of digits, and deep nesting
        return 0.0
    return float(validator.is_valid(value))


def _refuse(constant: str) -> None:
    raise ValueError(constant)
