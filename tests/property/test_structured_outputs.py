"""Random schemas and tags: what the masks let through is valid, and there is always a way on."""

import json
import random
from typing import Any

import jsonschema_rs
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.tiny_model import END, VOCAB_SIZE, tiny_tokenizer

from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.structured_outputs.compiler import GrammarCompiler
from octavo_runtime.structured_outputs.grammar import to_grammar

TOKENIZER = tiny_tokenizer()
[END_ID] = TOKENIZER.encode(END)
COMPILER = GrammarCompiler(TOKENIZER.bundle.tokenizer_json, VOCAB_SIZE, [END_ID])
MAX_TOKENS = 400

names = st.text('abcé "\\/\n<', min_size=1, max_size=4)
leaves: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.tuples(st.integers(-50, 50), st.integers(0, 60)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
    st.tuples(st.integers(0, 3), st.integers(0, 4)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": sum(pair)}
    ),
    st.lists(st.one_of(st.integers(-9, 9), names), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from([r"^[ab]{1,3}$", r"^\d{2}/\d{2}$", r"^(x|yz)*w$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 9}
    ),
)


def _object(parts: tuple[dict[str, Any], int]) -> dict[str, Any]:
    properties, num_required = parts
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:num_required],
        "additionalProperties": False,
    }


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.dictionaries(names, inner, max_size=3), st.integers(0, 3)).map(_object),
        st.tuples(inner, st.integers(0, 2)).map(
            lambda pair: {"type": "array", "items": pair[0], "maxItems": pair[1] + 1}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=5,
)


def generate(params: StructuredOutputsParams, seed: int) -> str:
    """A random output: any allowed token, but the end as soon as it is allowed."""
    chance = random.Random(seed)
    matcher = COMPILER.compile(to_grammar(params, {END: END_ID})).result().deep_copy()
    token_ids: list[int] = []
    while len(token_ids) < MAX_TOKENS:
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(mask, bitorder="little").nonzero()[0].tolist()
        assert allowed, "a dead end"
        assert max(allowed) < VOCAB_SIZE
        assert (END_ID in allowed) == matcher.is_accepting()
        if END_ID in allowed and (len(allowed) == 1 or chance.random() < 0.5):
            return TOKENIZER.decode(token_ids)
        token_id = chance.choice([token for token in allowed if token != END_ID])
        assert matcher.consume_token(token_id), matcher.get_error()
        token_ids.append(token_id)
    raise AssertionError("no end was reached")


@settings(max_examples=150)
@given(schemas, st.integers(0, 3))
def test_every_random_output_is_valid(schema: dict[str, Any], seed: int) -> None:
    params = StructuredOutputsParams(json=schema, whitespace_pattern="[ \n]{1,2}")
    text = generate(params, seed)
    assert jsonschema_rs.is_valid(schema, json.loads(text)), text


@settings(max_examples=60)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=5), st.integers(0, 3))
def test_a_choice_is_one_of_its_texts(choices: list[str], seed: int) -> None:
    assert generate(StructuredOutputsParams(choice=choices), seed) in choices


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=5), st.text(min_size=1, max_size=5), schemas)
def test_a_tag_has_its_texts_around_valid_json(
    begin: str, end: str, schema: dict[str, Any]
) -> None:
    content = {"type": "json_schema", "json_schema": schema}
    wanted = {"type": "tag", "begin": begin, "content": content, "end": end}
    text = generate(StructuredOutputsParams(structural_tag=json.dumps({"format": wanted})), 0)
    assert text.startswith(begin)
    assert text.endswith(end)
    assert jsonschema_rs.is_valid(schema, json.loads(text[len(begin) : -len(end)]))
