"""The ids of a text are those that the model's own tokenizer gives, whoever gives them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastokens import Tokenizer as FastTokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from dagger_exp.encoding import Encoder, encoder

HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e "
CORPUS = [
    HINDI,
    "def main():\n    return  12345, 'it's we'll'\r\n\r\n",
    "  fail test_main; açaí e\u0301 \u4e2d\u6587\n",
]
START, END = "<|im_start|>", "<|im_end|>"
ALPHABET = sorted(ByteLevel.alphabet())
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"


def split_at(words: str) -> Any:
    pieces: Any = [Split(Regex(words), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    return Sequence(pieces)


def byte_pairs(pre_tokenizer: Any, normalizer: Any = None, added: Any = (), alphabet: Any = ALPHABET) -> Any:
    """Return a byte-level BPE tokenizer that splits a text at given places."""
    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    trainer: Any = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[START, END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 20, trainer)
    backend.add_tokens(
        [AddedToken("<think>", special=False, normalized=False), AddedToken("<|pad|>", lstrip=True), *added]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, additional_special_tokens=[START])


def sentence_pieces() -> Any:
    """Return a BPE tokenizer as of Llama 2: spaces are letters, and what it does not know falls back to bytes."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127)), "▁m", "in"]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    backend: Any = Tokenizer(
        models.BPE(vocabulary, [("▁", "m"), ("i", "n")], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, additional_special_tokens=[START])


def words_alone() -> Any:
    """Return a tokenizer with a token per word, which fastokens does not read."""
    backend: Any = Tokenizer(models.WordLevel({"<unk>": 0, "def": 1, "main": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, additional_special_tokens=[START])


FAST = {
    "gpt2": byte_pairs(ByteLevel(add_prefix_space=False)),
    "qwen3": byte_pairs(split_at(CONTRACTIONS + WORDS % r"\p{N}"), normalizers.NFC()),
    "llama3": byte_pairs(split_at(CONTRACTIONS + WORDS % r"\p{N}{1,3}")),
    "llama2": sentence_pieces(),
}
SPACES = [AddedToken(" " * number) for number in range(8, 1, -1)]
OWN = {
    "a token per word": words_alone(),
    "a byte without a token": byte_pairs(ByteLevel(add_prefix_space=False), alphabet=[]),
    "words of another regex": byte_pairs(split_at(r"\w+|[^\w\s]+")),
    "runs of spaces": byte_pairs(
        ByteLevel(add_prefix_space=False), added=[*SPACES, AddedToken("<mask>", lstrip=True, normalized=False)]
    ),
}
"""Those that fastokens does not read, or reads otherwise."""
TEXTS = st.text() | st.lists(
    st.text(max_size=3)
    | st.sampled_from(
        [START, END, "<think>", "<|pad|>", "<mask>", "  ", "\r\n", "main", "'ll", "12345", "\u5b57", HINDI]
    )
).map("".join)


@pytest.mark.parametrize(
    ("tokenizer", "encode"), [(one, encoder(one)) for one in (FAST | OWN).values()], ids=list(FAST | OWN)
)
@given(TEXTS)
def test_the_ids_are_those_of_the_tokenizer(tokenizer: Any, encode: Encoder, text: str) -> None:
    assert encode(text) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a byte without a token", "main \u5b57"),
        ("words of another regex", HINDI),
        ("runs of spaces", "main  <mask>"),
    ],
)
def test_a_tokenizer_that_is_read_otherwise_is_asked_itself(name: str, text: str) -> None:
    other = FastTokenizer.from_json_str(OWN[name].backend_tokenizer.to_str())
    own = OWN[name].encode(text, add_special_tokens=False)
    with pytest.raises((AssertionError, ValueError)):  # or the mistake is mended there, and this case is of no use
        assert other.encode(text).ids == own
    assert encoder(OWN[name])(text) == own


class Backend:
    """The Rust part of a tokenizer, that counts its calls and may be described as another."""

    def __init__(self, tokenizer: Any, description: str = "") -> None:
        self.backend, self.num_calls = tokenizer.backend_tokenizer, 0
        self.description = description or self.backend.to_str()

    def to_str(self) -> str:
        return self.description

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.num_calls += 1
        return self.backend.encode_batch_fast(texts, **options)


class Described:
    """A tokenizer with such a part."""

    def __init__(self, tokenizer: Any, backend: Backend) -> None:
        self.tokenizer, self.backend_tokenizer = tokenizer, backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("name", FAST)
def test_the_shapes_in_use_are_read_fast(name: str) -> None:
    tokenizer: Any = Described(FAST[name], Backend(FAST[name]))
    encode = encoder(tokenizer)
    tokenizer.backend_tokenizer.num_calls = 0
    assert encode("def main")
    assert tokenizer.backend_tokenizer.num_calls == 0


@pytest.mark.parametrize("change", ["no merge", "no added token", "no composition"])
def test_other_ids_for_a_probe_are_not_taken(change: str) -> None:
    own = FAST["qwen3"]
    description = json.loads(own.backend_tokenizer.to_str())
    if change == "no merge":
        description["model"]["merges"] = []
    elif change == "no added token":
        description["added_tokens"] = description["added_tokens"][:-1]
    else:
        description["normalizer"] = None
    tokenizer: Any = Described(own, Backend(own, json.dumps(description)))
    text = f"def main e\u0301 <|pad|> {START}"
    assert encoder(tokenizer)(text) == own.encode(text, add_special_tokens=False)
