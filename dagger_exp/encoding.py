"""Texts to token ids, fast enough for a hundred episodes at once.

The tokenizer of a Hugging Face model takes longer for an observation than everything else that a turn costs together.
`fastokens` reads the same description and gives the same ids in a twentieth of the time. It does not read all kinds,
and ids are what a student learns, so it is not trusted blindly: both are asked for texts in which tokenizers differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from fastokens import Tokenizer as FastTokenizer

Encoder = Callable[[str], list[int]]
"""Gives the ids of a text; control tokens that it spells become such, and none is added."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    eos_token_id: Any
    added_tokens_decoder: Any

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...
    def encode(self, text: str, **options: Any) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], **options: Any) -> Any: ...


PROBES = (
    "".join(map(chr, [*range(0x3000), *range(0x3000, 0xD800, 0x400), *range(0xE000, 0x110000, 0x1000)])),
    "def f(x1234567890):\n\treturn  [-1,  ]  # it's WE'LL\r\n\r\n    ==== \n \n\n        end   ",
    "e\u0301 \u212b \ufb01 \u4e2d\u6587\u3001\u65e5\u672c \ud55c\uad6d \U0001f469\u200d\U0001f4bb \ufeff\ufffd",
)
"""Texts in which tokenizers differ: characters of all scripts, with every byte; runs of digits and spaces; marks."""
PROBED_TOKENS = 8
"""Of a vocabulary every eighth token is probed: all of 130,000 would take a second."""


def encoder(tokenizer: Tokenizer) -> Encoder:
    """Return what gives the ids of a text, as the tokenizer itself would, and faster where that is possible."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # batches of one need none, and it warns at every fork
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")  # one long text would take all cores
    tokenizer.encode("")  # which leaves the backend without the truncation and padding of others
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False))

    def own(text: str) -> list[int]:
        return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids  # no places of characters

    try:
        fast = _fast(backend.to_str())
        return fast if all(fast(text) == own(text) for text in _probes(tokenizer)) else own
    except Exception:  # noqa: BLE001 - of a kind that fastokens does not read; what Rust raises has no class of its own
        return own


def _fast(description: str) -> Encoder:
    fast_tokenizer = FastTokenizer.from_json_str(description)
    return lambda text: fast_tokenizer.encode(text, add_special_tokens=False).ids


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the texts that both are asked for, each added token of a tokenizer in places where it may not be seen."""
    yield from PROBES
    yield str(tokenizer.decode(sorted(tokenizer.get_vocab().values())[::PROBED_TOKENS], skip_special_tokens=False))
    for token in map(str, tokenizer.added_tokens_decoder.values()):
        yield f"a{token}b {token} {token}\n\n{token}{token}  {token}   {token[:-1]} {token.upper()}"
