"""The student: a causal language model and the tokenizer whose chat template is its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dagger_exp.chat import Chat
from dagger_exp.errors import ConfigError

PAD, UNKNOWN, END = "<|pad|>", "<|unknown|>", "<|end|>"
SPECIAL = [PAD, UNKNOWN, END, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""One role token and one end token per message."""


@dataclass(frozen=True, slots=True)
class Student:
    """What is trained, and how it reads and writes."""

    model: Any
    tokenizer: Any
    max_context_tokens: int

    @property
    def chat(self) -> Chat:
        return Chat(self.tokenizer)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def save_format(self, folder: Path) -> None:
        """Write all but the weights, so that a checkpoint can be read while the run goes on."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def from_scratch(
    *,
    vocabulary: Sequence[str],
    tokenizer: str,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    max_context_tokens: int,
    seed: int,
    init: str | None = None,
) -> Student:
    """Return a small random `Qwen3ForCausalLM`, or the one in the folder `init`.

    Args:
        vocabulary: words of the world; used by the `words` tokenizer only.
        tokenizer: `words` (one token a word, for worlds with a closed vocabulary) or `bytes` (free text).
        hidden_size: width, divisible by `num_heads`.
        num_layers: decoder layers.
        num_heads: attention heads, each with its own keys.
        intermediate_size: width inside the feed-forward blocks.
        max_context_tokens: longest sequence, in tokens.
        seed: of the initial weights.
        init: a Hugging Face folder or a finished run; its own sizes and tokenizer are used.

    Raises:
        ConfigError: unknown tokenizer, a world without a closed vocabulary for `words`, or no student in `init`.
    """
    if init is not None:
        return from_folder(path=init, max_context_tokens=max_context_tokens)
    fast = _small_tokenizer(tokenizer, vocabulary)
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_context_tokens,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index(PAD),
        eos_token_id=SPECIAL.index(END),
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Student(Qwen3ForCausalLM(config), fast, max_context_tokens)


def _small_tokenizer(kind: str, vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    if kind not in ("words", "bytes"):
        raise ConfigError(f"student.tokenizer is {kind!r}; choose words or bytes.")
    if kind == "words" and not vocabulary:
        raise ConfigError("this env has no closed vocabulary; choose student=tiny_bytes.")
    return word_tokenizer(vocabulary) if kind == "words" else byte_tokenizer()


def from_folder(*, path: str, max_context_tokens: int) -> Student:
    """Return the student of a Hugging Face folder or hub name, of a run, or of a run's checkpoint.

    Args:
        path: the folder, or `RUN/checkpoints/last.ckpt`.
        max_context_tokens: longest sequence, in tokens.

    Raises:
        ConfigError: there is none.
    """
    given = Path(path)
    folder = given.parent.parent if given.suffix == ".ckpt" else given
    folder = folder / "student" if (folder / "student").is_dir() else folder
    source = folder if folder.exists() else path
    is_folder = path.startswith(("/", ".", "~")) or path.count("/") > 1  # the hub's names are OWNER/NAME
    if is_folder and not given.exists():
        raise ConfigError(f"student.init or student.path is {path}, which is not there; give a run or a model folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # many models have none
        if given.suffix == ".ckpt":
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=torch.float32)
            model.load_state_dict(_weights(given))
        else:
            # fp32 whatever the folder holds: small updates vanish in bf16 weights; the trainer chooses the precision.
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        return Student(model, tokenizer, max_context_tokens)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no student could be loaded from {path}: {str(error).splitlines()[0]}") from error


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the model's weights out of a checkpoint of the training module."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items()}


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
