"""Rewards of JSON of a given form, by hand."""

import json

import pytest

pytest.importorskip("jsonschema", reason="the extra rewards is not installed")

from align.rewards import JSONSchema, JSONSchemaColumn, load_reward  # noqa: E402

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ('{"name": "Ada", "age": 36}', 1),
        (' {"name": "Ada"}\n', 1),
        ('Here:\n```json\n{"name": "Ada"}\n```\nThat is all.', 1),
        ('```\n{"age": 1}\n```\nor\n```JSON\n{"name": "Ada"}\n```', 1),
        ('```json\n{"name": "Ada"}', 1),
        ('```json\n{"name": "Ada"}\n```\nRead it with\n```python\njson.loads(text)\n```', 1),
        ('{"name": "Ada"} is the response', 0),
        ('{"name": "Ada", "age": -1}', 0),
        ('{"name": "Ada", "age": 1.5}', 0),
        ('{"name": "Ada", "age": NaN}', 0),
        ('{"name": "Ada", "job": "none"}', 0),
        ('{"age": 3}', 0),
        ('["Ada"]', 0),
        ("", 0),
        ("{'name': 'Ada'}", 0),
        ('{"name": ' + "[" * 100_000, 0),
        ('{"name": "Ada", "age": ' + "1" * 5000 + "}", 0),
    ],
)
def test_a_schema_of_all_responses(response: str, score: float):
    assert JSONSchema(PERSON)(["p"], [response]) == [score]


def test_a_schema_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    (tmp_path / "reward.yaml").write_text("class_path: JSONSchema\ninit_args: {schema: person.json}\n")
    assert load_reward("reward.yaml")(["p"] * 2, ['{"name": "Ada"}', "{}"]) == [1, 0]
    (tmp_path / "person.json").write_text("{")
    for schema in ("person.json", "absent.json"):
        with pytest.raises(ValueError, match=rf"JSONSchema\.schema is '{schema}'"):
            JSONSchema(schema)


def test_the_schema_of_each_record():
    """An object and a text; the draft that a schema names decides: exclusiveMinimum was a flag in draft 4."""
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}
    records = [{"schema": PERSON}, {"schema": json.dumps({"type": "integer"})}, {"schema": old}, {"schema": old}]
    assert JSONSchemaColumn()(["p"] * 4, ["3", "3", "1", "2"], records) == [0, 1, 0, 1]
    assert JSONSchemaColumn("form").columns == ("form",)


@pytest.mark.parametrize("schema", [{"type": "text"}, {"minimum": "1"}, 3, "{", "3", None])
def test_what_is_no_schema_is_named(schema):
    with pytest.raises(ValueError, match="column 'form'") as error:
        JSONSchemaColumn("form")(["p"], ["{}"], [{"form": schema}])
    assert "\n" not in str(error.value)


def test_references_are_not_downloaded(monkeypatch):
    """One within the schema is followed; one to another document is an error before anything is requested."""
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("a request was made"))
    within = {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
    assert JSONSchema(within)(["p", "p"], ["[1]", '["a"]']) == [1, 0]
    with pytest.raises(ValueError, match="https://example.org/n"):
        JSONSchema({"$ref": "https://example.org/n"})(["p"], ["1"])
