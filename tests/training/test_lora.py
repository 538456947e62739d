"""An adapter is what is trained, saved and loaded; the weights below it stay what they were."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dagger_exp.engines.scoring import score
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ConfigError
from dagger_exp.training.module import StudentModule
from dagger_exp.training.student import Lora, Student, from_folder, from_scratch

IDS = [5, 10, 11, 12, 13, 9]
TINY: dict[str, Any] = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64}


def student(finetuning: str = "lora") -> Student:
    vocabulary = RepoRepair().vocabulary()
    return from_scratch(
        vocabulary=vocabulary,
        tokenizer="words",
        max_context_tokens=64,
        seed=0,
        finetuning=finetuning,
        lora=Lora(rank=4),
        **TINY,
    )


@pytest.fixture
def trained() -> Student:
    """Return a student whose adapter does something."""
    made = student()
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return made


def test_a_fresh_adapter_changes_nothing_and_alone_is_trained() -> None:
    adapted, whole = student(), student("full")
    assert score(adapted.model, IDS).logprobs == pytest.approx(score(whole.model, IDS).logprobs)
    names = [name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad]
    assert names
    assert all(".lora_" in name for name in names)
    assert (adapted.lora_rank, whole.lora_rank) == (4, None)


def test_a_saved_adapter_comes_back_with_its_weights_below(trained: Student, tmp_path: Path) -> None:
    trained.save(tmp_path)
    loaded = from_folder(path=str(tmp_path), max_context_tokens=64)
    assert score(loaded.model, IDS).logprobs == pytest.approx(score(trained.model, IDS).logprobs)
    assert loaded.lora_rank == 4
    assert any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.source is not None  # a server can be started with it


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (None, "BESIDE/base, .*: it is not there; restore the folder, "),
        ("/gone/base", "/gone/base, .*: it is not there; restore the folder, "),
        ("runs/gone/base", "runs/gone/base, .*: it is not there; restore the folder, "),
        ("no/model", "no/model, .*; download it first, as hf download no/model does, "),
    ],
)
def test_weights_below_an_adapter_that_are_gone_are_named(
    trained: Student, tmp_path: Path, base: str | None, sentence: str
) -> None:
    trained.save(tmp_path)
    shutil.rmtree(tmp_path / "base")
    settings = tmp_path / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": base}))
    said = sentence.replace("BESIDE", str(tmp_path))
    with pytest.raises(ConfigError, match=f"^the base of the adapter in {tmp_path} is {said}or give a"):
        from_folder(path=str(tmp_path), max_context_tokens=64)


def test_an_adapter_that_is_damaged_is_named_itself(trained: Student, tmp_path: Path) -> None:
    trained.save(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigError, match=f"^student.path is {tmp_path}, of which no model .*; restore the folder"):
        from_folder(path=str(tmp_path), max_context_tokens=64)


def test_a_checkpoint_of_a_finished_run_can_be_trained_on(trained: Student, tmp_path: Path) -> None:
    trained.save(tmp_path / "student")
    state = {f"model.{name}": value for name, value in trained.model.state_dict().items() if "lora_" in name}
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": state}, tmp_path / "checkpoints/last.ckpt")
    loaded = from_folder(path=str(tmp_path / "checkpoints/last.ckpt"), max_context_tokens=64)
    assert any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert score(loaded.model, IDS).logprobs == pytest.approx(score(trained.model, IDS).logprobs)


def test_an_adapter_that_is_trained_on_names_the_weights_that_it_has_now(trained: Student, tmp_path: Path) -> None:
    """They stand beside the adapter before, whose own settings name a run that has gone on since."""
    gone_on = student("full")
    with torch.no_grad():
        gone_on.model.get_input_embeddings().weight.add_(1.0)
    gone_on.save(tmp_path / "gone_on")
    trained.model.active_peft_config.base_model_name_or_path = str(tmp_path / "gone_on")
    trained.save(tmp_path / "first")
    from_folder(path=str(tmp_path / "first"), max_context_tokens=64).save(tmp_path / "second")
    loaded = from_folder(path=str(tmp_path / "second"), max_context_tokens=64)
    assert score(loaded.model, IDS).logprobs == pytest.approx(score(trained.model, IDS).logprobs)


def test_a_checkpoint_goes_on_above_its_own_weights_only(trained: Student) -> None:
    """As where `student.init` names the checkpoint of a run that has gone on."""
    checkpoint = {"state_dict": dict(trained.model.state_dict(prefix="model."))}
    module = module_of(trained)
    module.on_save_checkpoint(checkpoint)
    assert all("lora_" in name for name in checkpoint["state_dict"])
    module_of(trained).on_load_checkpoint(checkpoint)
    with torch.no_grad():
        next(weight for weight in trained.model.parameters() if not weight.requires_grad).add_(1e-3)
    with pytest.raises(ConfigError, match="are not those that it began with: put back"):
        module_of(trained).on_load_checkpoint(checkpoint)


def module_of(student: Student) -> StudentModule:
    scheduler = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0)
    return StudentModule(student, optimizer=partial(torch.optim.SGD, lr=0.1), lr_scheduler=scheduler)


def test_what_a_template_was_given_is_given_to_it_again(trained: Student, tmp_path: Path) -> None:
    replace(trained, chat_options={"enable_thinking": False}).save(tmp_path)
    assert from_folder(path=str(tmp_path), max_context_tokens=64).chat_options == {"enable_thinking": False}


def test_the_weights_below_are_a_model_of_their_own(trained: Student, tmp_path: Path) -> None:
    trained.save_base(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert score(base, IDS).logprobs == pytest.approx(score(student("full").model, IDS).logprobs)


def test_an_adapter_is_put_on_a_model_from_a_folder(tmp_path: Path) -> None:
    student("full").save(tmp_path)
    made = [
        from_folder(path=str(tmp_path), max_context_tokens=64, finetuning="lora", lora=Lora(rank=2), seed=seed)
        for seed in (0, 0, 1)
    ]
    first, again, other = [one.model.state_dict() for one in made]
    assert made[0].source == str(tmp_path)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)  # the seed is the run's


def test_an_unknown_way_of_training_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.finetuning is 'half'; choose one of full, lora"):
        student("half")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rank", 0, r"rank is 0; it must be at least 1\."),
        ("dropout", 2.0, r"dropout is 2\.0; it must be between 0 and 1\."),
        ("dropout", math.nan, r"dropout is nan; it must be between 0 and 1\."),
        (
            "target_modules",
            ["nope"],
            r"target_modules is \['nope'\], on which .* takes no adapter; choose of down_proj, ",
        ),
        ("target_modules", "(", r"target_modules is \(, on which this model takes no adapter; choose of down_proj, "),
        ("target_modules", ["q_proj", "norm"], r"target_modules is \['q_proj', 'norm'\], on which .*, or all-linear\."),
    ],
)
def test_an_adapter_that_cannot_be_is_told_by_its_key(tmp_path: Path, name: str, value: Any, said: str) -> None:
    student("full").save(tmp_path)
    with pytest.raises(ConfigError, match=rf"^student\.lora\.{said}"):
        from_folder(path=str(tmp_path), max_context_tokens=64, finetuning="lora", lora=Lora(**{name: value}))
