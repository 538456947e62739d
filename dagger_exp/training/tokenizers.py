"""Tokenizers of students that are trained from scratch: a token per word of a world, or one per byte."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END = "<|pad|>", "<|unknown|>", "<|end|>"
SPECIAL = [PAD, UNKNOWN, END, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% set shown = namespace(tools='') %}"
    "{% for tool in tools or [] %}{% set shown.tools = shown.tools + '\n' + (tool | tojson) %}{% endfor %}"
    "{% set is_told = messages and messages[0]['role'] == 'system' %}"
    "{% if shown.tools and not is_told %}{{ '<|system|><tools>' + shown.tools + '\n</tools><|end|>' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|' + ('user' if message['role'] == 'tool' else message['role']) + '|>' + message['content'] }}"
    "{% if shown.tools and is_told and loop.first %}{{ '\n<tools>' + shown.tools + '\n</tools>' }}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}"
    "{% if message['content'] or not loop.first %}{{ '\n' }}{% endif %}"
    """{{ '<tool_call>\n{"name": "' + call['function']['name'] + '", "arguments": ' }}"""
    "{{ call['function']['arguments'] | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""One role token and one end token per message; tools in the system's, calls as Qwen3 writes them.

What a tool answers comes from `<|user|>`: a role token of its own would move the ids of all words.
"""


def word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word; words are split at white space."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary])}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return _fast(backend)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per UTF-8 byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {symbol: i for i, symbol in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(ids, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(  # pyright: ignore[reportAttributeAccessIssue]
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return _fast(backend)


def _fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=SPECIAL[3:],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
