"""Models whose layers keep the branches of a tree apart are trained, and all others refused before the first round."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dagger_exp.errors import ConfigError
from dagger_exp.training.module import StudentModule
from dagger_exp.training.student import Student
from dagger_exp.training.tree_check import check_trees

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}


def student(config: Any, max_context_tokens: int = 64) -> Student:
    """Return one whose weights are large, as after training, so that who sees whom makes a difference."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return Student(model, None, max_context_tokens)


@pytest.mark.parametrize(
    "config",
    [
        partial(AutoConfig.for_model, "qwen3", **SIZES, head_dim=16),
        partial(AutoConfig.for_model, "llama", **SIZES),
        partial(AutoConfig.for_model, "mistral", **SIZES, sliding_window=64),
        partial(AutoConfig.for_model, "gpt2", **GPT2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_attention_is_taken(config: Callable[[], Any], dtype: torch.dtype) -> None:
    made = student(config())
    made.model.to(dtype)
    check_trees(made)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (partial(AutoConfig.for_model, "gptj", **GPT2, rotary_dim=8), "mixes the branches"),
        (partial(AutoConfig.for_model, "lfm2", **SIZES, layer_types=["conv", "full_attention"]), "mixes the branches"),
        (partial(AutoConfig.for_model, "mistral", **SIZES, sliding_window=8), "look back 8 tokens only"),
        (
            partial(AutoConfig.for_model, "mamba", vocab_size=64, hidden_size=32, num_hidden_layers=2),
            "cannot be trained on",
        ),
    ],
)
def test_what_a_mask_does_not_reach_is_refused(config: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_trees(student(config()))


def test_a_student_from_a_folder_is_trained_with_its_dropout() -> None:
    made = student(AutoConfig.for_model("gpt2", **GPT2, resid_pdrop=0.1))
    made.model.eval()  # as `from_pretrained` returns it
    module = StudentModule(made, optimizer=torch.optim.SGD, lr_scheduler=torch.optim.lr_scheduler.ConstantLR)
    check_trees(made)
    assert all(part.training for part in module.modules())
