"""How far prompts agree with a declared prefix, whatever the template makes of it."""

import logging
from dataclasses import replace

import msgspec
import pytest
from tests.fakes.tiny_model import tiny_bundle, tiny_tokenizer

from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.hashing import SharedPrefix
from octavo_protocol.openai import ChatCompletionRequest
from octavo_protocol.packed_ids import pack
from octavo_protocol.tokenizer import Tokenizer
from octavo_router.shared_prefixes import SharedPrefixes
from octavo_router.tenancy.declared_prefix import DeclaredPrefix
from octavo_router.tenancy.tenant import Tenant

SYSTEM = ("system", "You are kind.")
QUESTION = "{% if messages[-1].role != 'user' %}{{ raise_exception('no question') }}{% endif %}"
MERGED = (  # the system prompt is a part of the first question
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}] "
    "{% if loop.first %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}{% endfor %}"
)


def tokenizer(template: str) -> Tokenizer:
    return Tokenizer(msgspec.structs.replace(tiny_bundle(), chat_template=template))


def chat(*messages: tuple[str, str], **fields: object) -> ChatCompletionRequest:
    given = [{"role": role, "content": content} for role, content in messages]
    return ChatCompletionRequest.model_validate({"messages": given, **fields})


def shared_text(
    template: str, declared: DeclaredPrefix, request: ChatCompletionRequest
) -> str | None:
    """What the request's prompt shares, as text."""
    coder = tokenizer(template)
    ids = coder.chat_token_ids(request)
    found = SharedPrefixes(BoundedMemo(2**20)).find([declared], pack(ids), coder)
    if found is None:
        return None
    assert found == SharedPrefix.of(pack(ids[: found.num_tokens]), "salt")
    return coder.decode(ids[: found.num_tokens], skip_special_tokens=False)


DEFAULT = tiny_bundle().chat_template or ""
KIND = DeclaredPrefix("kind", "salt", messages=(SYSTEM,))
ASKED = DeclaredPrefix("asked", "salt", messages=(SYSTEM, ("user", "Who are you?")))
HEAD = "<|start|>system\nYou are kind.<|end|>\n<|start|>"
ANSWERED = HEAD + "user\nWho are you?<|end|>\n<|start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "declared", "request_", "expected"),
    [
        (DEFAULT, KIND, chat(SYSTEM, ("user", "hi")), HEAD + "user\n"),
        (DEFAULT, KIND, chat(SYSTEM, ("user", "a question")), HEAD + "user\n"),
        (DEFAULT, KIND, chat(SYSTEM, ("assistant", "hi")), HEAD),
        (DEFAULT, KIND, chat(("system", "Be cold."), ("user", "a")), "<|start|>system\n"),
        (DEFAULT, ASKED, chat(*ASKED.messages), ANSWERED),
        (QUESTION + DEFAULT, KIND, chat(SYSTEM, ("user", "hi")), HEAD + "user\n"),
        (MERGED, KIND, chat(SYSTEM, ("user", "hi")), "[user] You are kind.\n\n"),
        (DEFAULT, DeclaredPrefix("t", "salt", text=HEAD), chat(SYSTEM, ("user", "hi")), HEAD),
        (DEFAULT, DeclaredPrefix("t", "salt", text="You are kind."), chat(SYSTEM), None),
        ("{{ raise_exception('no') if messages[1:] }}x", KIND, chat(SYSTEM), None),
    ],
)  # fmt: skip
def test_a_prompt_shares_what_is_declared_and_no_token_of_a_client(
    template: str, declared: DeclaredPrefix, request_: ChatCompletionRequest, expected: str | None
) -> None:
    assert shared_text(template, declared, request_) == expected


def test_a_template_that_refuses_a_prefix_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusing = tokenizer("{{ raise_exception('only questions') }}")
    prefixes = SharedPrefixes(BoundedMemo(2**20))
    with caplog.at_level(logging.WARNING):
        assert [prefixes.find([KIND], pack([1]), refusing) for _ in range(2)] == [None, None]
    assert len(caplog.records) == 1
    assert "the shared prefix kind cannot be used: chat template: only" in caplog.text


def test_of_several_prefixes_the_longest_agreement_counts() -> None:
    texts = ("the quick", "the quick brown fox", "the quick brown dog")
    declared = [DeclaredPrefix(text, f"salt of {text}", text=text) for text in texts]
    prompt = pack(tiny_tokenizer().encode("the quick brown fox jumps"))
    found = SharedPrefixes(BoundedMemo(2**20)).find(declared, prompt, tiny_tokenizer())
    assert found is not None
    assert found.cache_salt == "salt of the quick brown fox"


def test_a_request_counts_as_its_group_where_it_has_one() -> None:
    prefix = replace(KIND, tenants=("a*",), cache_groups=("docs",), models=("llama-*",))
    members = [(Tenant("acme"), None), (Tenant("acme"), "docs"), (Tenant("acme"), "other")]
    assert [prefix.is_for(*each) for each in members] == [True, True, False]
    assert not prefix.is_for(Tenant("other"), None)
    assert [prefix.is_of(model) for model in ("llama-a", "gpt")] == [True, False]
