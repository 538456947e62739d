"""A teacher that is a model in this process: any causal language model, or the student of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoTokenizer

from dagger_exp.chat.check import check_teacher
from dagger_exp.engines.hf import HfEngine
from dagger_exp.errors import ConfigError, check_at_least
from dagger_exp.policies.llm import LanguagePolicy, ModelTeacher
from dagger_exp.policies.served import ServedPolicy
from dagger_exp.protocols import Policy, Scaffold
from dagger_exp.training.student import Student, from_folder


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
    scaffold: Scaffold | None = None,
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
        scaffold: has the tools that its chat template shows, and reads the calls that it writes.
        id: name under which it is recorded; None is its path.

    Raises:
        ConfigError: a value is out of its range, no model could be loaded, there is no such device, or the template
            does not show the scaffold's tools or write its calls.
    """
    lengths: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_context_tokens": max_context_tokens}
    check_at_least(1, "teacher", **lengths, max_batch_size=max_batch_size)
    check_at_least(0, "teacher", temperature=temperature)
    _check_device(device)
    own: dict[str, Any] = {"dtype": dtype, "chat_options": chat_options, "key": "teacher.path"}
    model = from_folder(path=path, max_context_tokens=max_context_tokens, **own)
    chat = replace(model, tools=scaffold.tools if scaffold else ()).chat
    check_teacher(chat, scaffold)
    engine = HfEngine(end_id=chat.end_id, pad_id=model.tokenizer.pad_token_id, max_batch_size=max_batch_size)
    engine.load_weights(0, model.model.to(device).requires_grad_(False).eval())
    return ModelTeacher(engine=engine, chat=chat, temperature=temperature, scaffold=scaffold, id=id or path, **lengths)


def _check_device(device: str) -> None:
    """Look for a device before a model is loaded for it; raises `ConfigError`."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for no such name and for no such device
        said = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"teacher.device={device} cannot be had here ({said}): choose {_devices()}.") from error


def _devices() -> str:
    """Return what this machine has, in words."""
    found = torch.accelerator.current_accelerator(check_available=True)
    others = [f"{found.type}:{index}" for index in range(torch.accelerator.device_count())] if found else []
    return f"one of cpu, {', '.join(others)}" if others else "cpu, since this machine has no other"


def check_vocabularies(student: Student, teacher: Policy) -> None:
    """Refuse log-probabilities of a teacher that knows other tokens than the student.

    Raises:
        ConfigError: it does, or it gives none.
    """
    theirs, ours = _vocabulary(teacher), student.tokenizer.get_vocab()
    if theirs != ours:
        differing = sorted(theirs.items() ^ ours.items())[:1]
        raise ConfigError(
            f"the vocabularies of the student and of the teacher {teacher.id!r} differ, as in {differing[0]}: its "
            "log-probabilities mean nothing here; labeler.turns=all, which learns from its text, works."
        )


def _vocabulary(teacher: Policy) -> dict[str, int]:
    """Return the tokens that a teacher knows, with their ids."""
    match teacher:
        case LanguagePolicy():
            return teacher.chat.tokenizer.get_vocab()
        case ServedPolicy(tokenizer=str(path)):
            try:
                return AutoTokenizer.from_pretrained(path).get_vocab()
            except (OSError, ValueError) as error:
                raise ConfigError(f"teacher.tokenizer={path} cannot be read: {str(error).splitlines()[0]}") from error
        case ServedPolicy():
            raise ConfigError("log-probabilities of a served teacher need teacher.tokenizer: its folder or hub name.")
        case _:
            raise ConfigError(f"the teacher {teacher.id!r} gives no log-probabilities; choose labeler.turns=all.")
