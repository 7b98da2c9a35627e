"""Finds the declared prefix with which a prompt begins, by token ids.

What counts is how far the ids agree: a text's last token may join with what follows it, and some
templates put tools before the end of the system prompt. Blocks before that point are shared.
"""

import bisect
import datetime
import hashlib
import logging
from collections.abc import Sequence

from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.errors import ValidationError
from octavo_protocol.hashing import HASH_BYTES, SharedPrefix
from octavo_protocol.openai import ChatCompletionRequest
from octavo_protocol.packed_ids import ID_BYTES, pack
from octavo_protocol.tokenizer import Tokenizer
from octavo_router.tenancy.declared_prefix import DeclaredPrefix

logger = logging.getLogger(__name__)

_FOLLOWING = ("a", "b")  # any two texts without a common beginning


class SharedPrefixes:
    """Thread-safe. memo: keeps the ids of declared prefixes."""

    def __init__(self, memo: BoundedMemo[bytes]) -> None:
        self._memo = memo

    def find(
        self, declared: Sequence[DeclaredPrefix], prompt: bytes, tokenizer: Tokenizer
    ) -> SharedPrefix | None:
        """What `prompt`, packed ids, has in common with the one of `declared` with which it agrees
        longest; None: nothing.
        """
        longest, salt = b"", ""
        for each in declared:
            common = common_beginning(prompt, self._ids(each, tokenizer))
            if len(common) > len(longest):
                longest, salt = common, each.cache_salt
        return SharedPrefix.of(longest, salt) if longest else None

    def _ids(self, declared: DeclaredPrefix, tokenizer: Tokenizer) -> bytes:
        # Templates may name the day.
        name = f"shared prefix {declared.cache_salt} {tokenizer.id} {datetime.date.today()}"
        key = hashlib.sha256(name.encode()).digest()[:HASH_BYTES]
        if (known := self._memo.get(key)) is not None:
            return known
        try:
            ids = _token_ids(declared, tokenizer)
        except ValidationError as error:
            logger.warning("the shared prefix %s cannot be used: %s", declared.name, error)
            ids = b""
        self._memo.put(key, ids, len(ids))
        return ids


def _token_ids(declared: DeclaredPrefix, tokenizer: Tokenizer) -> bytes:
    """Those with which every prompt begins that begins with `declared`, packed."""
    if declared.text:
        return pack(tokenizer.encode(declared.text))
    # Many templates refuse a conversation without a question, or change what is before its end.
    last = "assistant" if declared.messages[-1][0] == "user" else "user"
    first, second = (
        pack(tokenizer.chat_token_ids(_chat([*declared.messages, (last, text)])))
        for text in _FOLLOWING
    )
    return common_beginning(first, second)


def _chat(messages: Sequence[tuple[str, str]]) -> ChatCompletionRequest:
    given = [{"role": role, "content": content} for role, content in messages]
    return ChatCompletionRequest.model_validate({"messages": given})


def common_beginning(first: bytes, second: bytes) -> bytes:
    """The ids that both, packed, begin with."""
    shortest = min(len(first), len(second)) // ID_BYTES

    def differ(number: int) -> bool:
        return first[: ID_BYTES * number] != second[: ID_BYTES * number]

    num_common = bisect.bisect_right(range(1, shortest + 1), False, key=differ)
    return first[: ID_BYTES * num_common]
