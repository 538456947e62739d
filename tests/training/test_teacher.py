"""A teacher in this process: it is shown the tools of the scaffold, in its own format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from dagger_exp.errors import ConfigError
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.training.student import from_scratch
from dagger_exp.training.teacher import from_model
from dagger_exp.types import Message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a model folder whose chat template shows tools."""
    student = from_scratch(
        vocabulary=[],
        tokenizer="bytes",
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_context_tokens=64,
        seed=0,
    )
    path = tmp_path_factory.mktemp("model")
    student.save(path)
    return path


def test_the_tools_of_the_scaffold_stand_in_its_prompt(folder: Path) -> None:
    def prompt(scaffold: BashScaffold | ToolScaffold) -> str:
        teacher = from_model(path=str(folder), max_context_tokens=64, max_new_tokens=8, scaffold=scaffold)
        assert teacher.scaffold is scaffold
        return teacher.chat.tokenizer.decode(teacher.chat.open([Message("user", "go")]).prompt_ids)

    assert '"name": "execute_bash"' in prompt(ToolScaffold())
    assert "execute_bash" not in prompt(BashScaffold())


@pytest.mark.parametrize("device", ["nope", "", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str) -> None:
    has_here = "one of cpu, .*:0" if torch.accelerator.is_available() else "cpu, since this machine has no other"
    with pytest.raises(
        ConfigError, match=rf"^teacher\.device={device} cannot be had here \(.*\): choose {has_here}\.$"
    ):
        from_model(path=str(folder), max_context_tokens=64, max_new_tokens=8, device=device)


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("max_new_tokens", [0, -1], "at least 1"),
        ("max_context_tokens", [0, -1], "at least 1"),
        ("max_batch_size", [0, -1], "at least 1"),
        ("temperature", [-0.5, math.nan], "at least 0"),
    ],
)
def test_a_value_out_of_its_range_is_refused(folder: Path, name: str, values: list[Any], wanted: str) -> None:
    settings: dict[str, Any] = {"path": str(folder), "max_context_tokens": 64, "max_new_tokens": 8}
    for value in values:
        with pytest.raises(ConfigError, match=rf"^teacher\.{name} is {value}; it must be {wanted}\.$"):
            from_model(**settings | {name: value})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"path": "/nowhere"}, r"^teacher\.path is /nowhere, which is not there; give a run or a model folder"),
        ({"path": "no/model"}, r"^teacher\.path is no/model, of which .*; download it first, as hf download no/model "),
        ({"dtype": "bf16"}, r"^teacher\.dtype is 'bf16'; choose one of float32, bfloat16, float16, float64\.$"),
    ],
)
def test_what_cannot_be_loaded_is_told_by_the_teachers_own_keys(folder: Path, settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_model(**{"path": str(folder), "max_context_tokens": 64, "max_new_tokens": 8} | settings)


def test_a_template_that_shows_no_tools_is_refused(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '<|end|>' }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"a teacher in this process, shows no tools.*scaffold=bash"):
        from_model(path=str(folder), max_context_tokens=64, max_new_tokens=8, scaffold=ToolScaffold())
