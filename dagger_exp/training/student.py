"""The student: a causal language model and the tokenizer whose chat template is its format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from dagger_exp.chat.conversation import Chat
from dagger_exp.errors import ConfigError, check_at_least
from dagger_exp.store.files import write_json
from dagger_exp.training.lora import Lora, adapted
from dagger_exp.training.model_folder import BASE, CHAT_OPTIONS, ModelFolder, loaded_from
from dagger_exp.training.tokenizers import END, PAD, SPECIAL, byte_tokenizer, word_tokenizer

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, slots=True)
class Student:
    """What is trained, and how it reads and writes.

    Args:
        model: a Hugging Face causal language model, or a PEFT model around one.
        tokenizer: with a chat template.
        max_context_tokens: longest sequence, in tokens.
        source: folder or hub name of the weights before training; None where they exist here only.
        chat_options: what the chat template takes beside the messages.
        tools: JSON schemas of the tools that the chat template shows.
    """

    model: Any
    tokenizer: Any
    max_context_tokens: int
    source: str | None = None
    chat_options: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()

    @property
    def chat(self) -> Chat:
        return Chat(self.tokenizer, self.tools, self.chat_options)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def lora_rank(self) -> int | None:
        """Rank of the adapter; None where all weights are trained."""
        return getattr(self.model.active_peft_config, "r", None) if isinstance(self.model, PeftModel) else None

    def save_format(self, folder: Path) -> None:
        """Write all but what is trained, so that a checkpoint can be read while the run goes on."""
        if isinstance(self.model, PeftModel):
            self.model.active_peft_config.save_pretrained(str(folder))
            if self.source is None:
                self.save_base(folder / BASE)
        else:
            self.model.config.save_pretrained(folder)
        self._save_chat(folder)

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load, or an adapter's that PEFT loads."""
        if isinstance(self.model, PeftModel) and self.source is None:
            self.save_base(folder / BASE)
        self.model.save_pretrained(str(folder))
        self._save_chat(folder)

    def save_base(self, folder: Path) -> None:
        """Write a Hugging Face folder with all weights but an adapter's."""
        if isinstance(self.model, PeftModel):
            base: Any = self.model.get_base_model()
            state = {
                name.replace(".base_layer.", "."): value
                for name, value in base.state_dict().items()
                if ".lora_" not in name
            }
            base.save_pretrained(folder, state_dict=state)
        else:
            self.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(folder)

    def _save_chat(self, folder: Path) -> None:
        """Write how it reads and writes; the options too, or others would give it other prompts."""
        self.tokenizer.save_pretrained(folder)
        write_json(folder / CHAT_OPTIONS, dict(self.chat_options or {}))


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
    finetuning: str = "full",
    lora: Lora | None = None,
) -> Student:
    """Return a small random `Qwen3ForCausalLM`, or the one in the folder `init`.

    Args:
        vocabulary: words of the world; used by the `words` tokenizer only.
        tokenizer: `words` (one token a word, for worlds with a closed vocabulary) or `bytes` (free text).
        hidden_size: width, divisible by twice `num_heads`.
        num_layers: decoder layers.
        num_heads: attention heads, each with its own keys.
        intermediate_size: width inside the feed-forward blocks.
        max_context_tokens: longest sequence, in tokens.
        seed: of the initial weights.
        init: a Hugging Face folder or a finished run; its own sizes and tokenizer are used.
        finetuning: `full`, or `lora` (an adapter on the random weights, for tests of the whole path).
        lora: the adapter.

    Raises:
        ConfigError: unknown tokenizer, a world without a closed vocabulary for `words`, no student in `init`, or a size
            that no model has.
    """
    if init is not None:
        own: dict[str, Any] = {"finetuning": finetuning, "lora": lora, "seed": seed}
        return from_folder(path=init, max_context_tokens=max_context_tokens, key="student.init", **own)
    _check_sizes(hidden_size, num_layers, num_heads, intermediate_size)
    fast = _small_tokenizer(tokenizer, vocabulary)
    config = _small_config(len(fast), hidden_size, num_layers, num_heads, intermediate_size, max_context_tokens)
    with _seeded(seed):
        return Student(adapted(Qwen3ForCausalLM(config), finetuning, lora), fast, max_context_tokens)


def _check_sizes(hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int) -> None:
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "num_heads": num_heads}
    check_at_least(1, "student", **sizes, intermediate_size=intermediate_size)
    if hidden_size % (2 * num_heads):  # places turn each head's numbers in pairs
        raise ConfigError(
            f"student.hidden_size is {hidden_size}; it must be divisible by twice student.num_heads, {2 * num_heads}."
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw weights from this seed, and leave the draws of everybody else as they were.

    Raises:
        ConfigError: torch takes no such number.
    """
    if not -(2**63) <= seed < 2**63:
        raise ConfigError(f"seed is {seed}; it must have 18 digits at most.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _small_config(
    vocab_size: int, hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int, max_context_tokens: int
) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocab_size,
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


def _small_tokenizer(kind: str, vocabulary: Sequence[str]) -> Any:
    if kind not in ("words", "bytes"):
        raise ConfigError(f"student.tokenizer is {kind!r}; choose words or bytes.")
    if kind == "words" and not vocabulary:
        raise ConfigError("this env has no closed vocabulary; choose student=tiny_bytes.")
    return word_tokenizer(vocabulary) if kind == "words" else byte_tokenizer()


def from_folder(
    *,
    path: str,
    max_context_tokens: int,
    finetuning: str = "full",
    lora: Lora | None = None,
    dtype: str = "float32",
    chat_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    key: str = "student.path",
) -> Student:
    """Return the student of a Hugging Face folder or hub name, of a run, or of a run's checkpoint.

    Args:
        path: the folder, or `RUN/checkpoints/last.ckpt`; of an adapter's folder training goes on with the adapter.
        max_context_tokens: longest sequence, in tokens.
        finetuning: `full`, or `lora`.
        lora: a fresh adapter, where there is none yet.
        dtype: of the weights; small updates vanish in bf16, so it is for weights that an adapter leaves alone.
        chat_options: what the chat template takes beside the messages, as `enable_thinking`; empty takes a run's own.
        seed: of a fresh adapter.
        key: under which the path was typed, for what is refused.

    Raises:
        ConfigError: there is none, or its model has no embedding of some token or place.
    """
    group = key.partition(".")[0]
    if dtype not in DTYPES:
        raise ConfigError(f"{group}.dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    folder = ModelFolder.at(path, key)
    with _seeded(seed):
        with loaded_from(path, key):
            tokenizer, chat_options = folder.tokenizer(), chat_options or folder.chat_options()
            model = folder.with_adapter(dtype) if folder.has_adapter else folder.whole(dtype)
        if not folder.has_adapter:
            model = adapted(model, finetuning, lora)
    _check_fit(path, group, model, tokenizer, max_context_tokens)
    source = folder.base if folder.has_adapter else None if folder.checkpoint else folder.source
    return Student(model, tokenizer, max_context_tokens, source, chat_options)


def _check_fit(path: str, group: str, model: Any, tokenizer: Any, max_context_tokens: int) -> None:
    """Refuse what would fail in the midst of a round: tokens and places that the model has no embedding of."""
    highest, num_rows = max(tokenizer.get_vocab().values()), len(model.get_input_embeddings().weight)
    if highest >= num_rows:
        raise ConfigError(
            f"the tokenizer of {path} has tokens up to {highest}, but its model embeds {num_rows}: give the model its "
            "own tokenizer, or save it after model.resize_token_embeddings(len(tokenizer))."
        )
    is_rotary = getattr(model.config, "rope_parameters", None) is not None  # turns on beyond its training
    num_places = getattr(model.config, "max_position_embeddings", None)
    if not is_rotary and num_places is not None and max_context_tokens > num_places:
        raise ConfigError(
            f"{path} reads {num_places} tokens, but max_context_tokens is {max_context_tokens}: lower "
            f"{group}.max_context_tokens."
        )
