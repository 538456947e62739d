"""A teacher that is a model in this process: any causal language model, or the student of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagger_exp.engines.hf import HfEngine
from dagger_exp.policies.llm import ModelTeacher
from dagger_exp.training.student import from_folder


def from_model(
    *,
    path: str,
    max_context_tokens: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    dtype: str = "float32",
    device: str = "cpu",
    max_batch_size: int = 64,
    chat_options: Mapping[str, Any] | None = None,
    id: str | None = None,
) -> ModelTeacher:
    """Return a teacher that generates in this process.

    Args:
        path: a Hugging Face folder or hub name, a run, or a checkpoint of one.
        max_context_tokens: longest prompt and response, in its own tokens.
        max_new_tokens: longest response.
        temperature: 0 is greedy.
        dtype: of its weights.
        device: as torch names it.
        max_batch_size: rows of one forward pass.
        chat_options: what its chat template takes beside the messages.
        id: name under which it is recorded; None is its path.

    Raises:
        ConfigError: no model could be loaded.
    """
    model = from_folder(path=path, max_context_tokens=max_context_tokens, dtype=dtype, chat_options=chat_options)
    chat = model.chat
    engine = HfEngine(end_id=chat.end_id, pad_id=model.tokenizer.pad_token_id, max_batch_size=max_batch_size)
    engine.load_weights(0, model.model.to(device).requires_grad_(False).eval())
    return ModelTeacher(
        engine=engine,
        chat=chat,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        max_context_tokens=max_context_tokens,
        id=id or path,
    )
