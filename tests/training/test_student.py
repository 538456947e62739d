"""The student can be saved and loaded by Hugging Face's own classes, and its tokenizers lose nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from dagger_exp.chat.conversation import Chat
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ConfigError
from dagger_exp.training.student import Student, from_folder, from_scratch
from dagger_exp.training.tokenizers import SPECIAL, byte_tokenizer, word_tokenizer
from dagger_exp.types import Message, Task

WORLD = RepoRepair()
TINY: dict[str, Any] = {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "intermediate_size": 256}
"""As conf/student/tiny.yaml."""
WORDS: Any = word_tokenizer(WORLD.vocabulary())
BYTES: Any = byte_tokenizer()


@pytest.fixture(params=["words", "bytes"])
def student(request: pytest.FixtureRequest) -> Student:
    torch.set_num_threads(1)
    vocabulary = WORLD.vocabulary()
    return from_scratch(vocabulary=vocabulary, tokenizer=request.param, max_context_tokens=1024, seed=0, **TINY)


def test_tiny_has_about_a_third_of_a_million_parameters(student: Student) -> None:
    assert 300_000 <= student.num_parameters <= 400_000


def test_a_saved_student_loads_with_equal_logits(student: Student, tmp_path: Path) -> None:
    student.save(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    again = from_folder(path=str(tmp_path), max_context_tokens=1024)
    messages = [Message("user", "repo f1 f2"), Message("assistant", "open f1")]
    ids = student.chat.open(messages).prompt_ids
    assert Chat(tokenizer).open(messages).prompt_ids == again.chat.open(messages).prompt_ids == ids
    with torch.inference_mode():
        expected = student.model(torch.tensor([ids])).logits
        assert torch.equal(model(torch.tensor([ids])).logits, expected)
        assert torch.equal(again.model(torch.tensor([ids])).logits, expected)


def test_a_checkpoint_beside_the_saved_format_loads_with_its_own_weights(student: Student, tmp_path: Path) -> None:
    """As a run writes it: the format in student/, the weights in checkpoints/last.ckpt."""
    student.save_format(tmp_path / "student")
    with torch.no_grad():
        next(student.model.parameters()).add_(0.25)
    (tmp_path / "checkpoints").mkdir()
    state = {f"model.{name}": value for name, value in student.model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "checkpoints" / "last.ckpt")
    again = from_folder(path=str(tmp_path / "checkpoints" / "last.ckpt"), max_context_tokens=1024)
    ids = torch.tensor([[7, 8, 9]])
    with torch.inference_mode():
        assert torch.equal(again.model(ids).logits, student.model(ids).logits)


def test_the_seed_decides_the_weights_and_nothing_else_is_drawn() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    weights = [weights_of(seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def weights_of(seed: int) -> torch.Tensor:
    student = from_scratch(vocabulary=(), tokenizer="bytes", max_context_tokens=64, seed=seed, **TINY)
    return torch.cat([p.detach().flatten() for p in student.model.parameters()])


@given(st.lists(st.sampled_from(WORLD.vocabulary()), max_size=12))
@settings(max_examples=50)
def test_words_round_trip_with_one_token_each(words: list[str]) -> None:
    message = Message("assistant", " ".join(words))
    ids = Chat(WORDS).response_ids(message, Chat(WORDS).open([Message("user", "test")]))
    assert len(ids) == len(words) + 1
    assert Chat(WORDS).parse(ids) == message


@example("spaces before marks : a , b . do n't !  \n\t \x00 \u00e9 <|end|> ")
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=200)
def test_bytes_round_trip_any_text_with_one_token_each(text: str) -> None:
    ids = BYTES.encode(text, add_special_tokens=False)
    assert len(ids) == len(text.encode()) or any(token in text for token in SPECIAL)
    assert BYTES.decode(ids, skip_special_tokens=False) == text


async def teacher_messages(task: Task) -> list[Message]:
    env, messages = WORLD.make(task), []
    messages += await env.reset()
    while True:
        messages.append(env.expert_action())
        result = await env.step(messages[-1])
        if result.stop_reason is not None:
            return messages
        messages.append(result.observation)


def test_the_teachers_median_episode_has_at_most_200_tokens() -> None:
    episodes = [asyncio.run(teacher_messages(task)) for task in WORLD.tasks("train")[:60]]
    assert median(len(Chat(WORDS).open(messages).prompt_ids) for messages in episodes) <= 200


def test_what_cannot_be_a_student_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = TINY | {"max_context_tokens": 64, "seed": 0}
    with pytest.raises(ConfigError, match="choose words or bytes"):
        from_scratch(vocabulary=["a"], tokenizer="letters", **options)
    with pytest.raises(ConfigError, match="no closed vocabulary"):
        from_scratch(vocabulary=[], tokenizer="words", **options)
    with pytest.raises(ConfigError, match=rf"^student\.path is {tmp_path}, of which no model could be loaded"):
        from_folder(path=str(tmp_path), max_context_tokens=64)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_layers": -1}, r"student\.num_layers is -1; it must be at least 1\."),
        ({"num_heads": 0}, r"student\.num_heads is 0; it must be at least 1\."),
        ({"hidden_size": 0}, r"student\.hidden_size is 0; it must be at least 1\."),
        ({"hidden_size": -8}, r"student\.hidden_size is -8; it must be at least 1\."),
        ({"hidden_size": 12}, r"student\.hidden_size is 12; it must be divisible by twice student\.num_heads, 8\."),
        ({"intermediate_size": -8}, r"student\.intermediate_size is -8; it must be at least 1\."),
        ({"seed": 10**20 - 1}, r"seed is 9{20}; it must have 18 digits at most\."),
        ({"init": "/nowhere"}, r"student\.init is /nowhere, which is not there; give a run or a model folder\."),
    ],
)
def test_a_size_or_a_seed_that_no_model_has_is_told_by_its_key(settings: dict[str, Any], said: str) -> None:
    options: dict[str, Any] = TINY | {"vocabulary": (), "tokenizer": "bytes", "max_context_tokens": 64, "seed": 0}
    with pytest.raises(ConfigError, match=f"^{said}$"):
        from_scratch(**options | settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"path": "no/model"},
            r"student\.path is no/model, of which no model .*: .*; download it first, as hf download ",
        ),
        ({"path": "/nowhere"}, r"student\.path is /nowhere, which is not there; give a run or a model folder\.$"),
        ({"dtype": "float99"}, r"student\.dtype is 'float99'; choose one of float32, bfloat16, float16, float64\.$"),
        ({"seed": 10**20}, r"seed is 10{20}; it must have 18 digits at most\.$"),
    ],
)
def test_what_cannot_be_loaded_is_told_by_the_key_with_its_mend(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        from_folder(**{"path": str(tmp_path), "max_context_tokens": 64} | settings)


def test_a_damaged_student_is_named(tmp_path: Path) -> None:
    options: dict[str, Any] = TINY | {"max_context_tokens": 64, "seed": 0}
    student = from_scratch(vocabulary=["a"], tokenizer="words", **options)
    student.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"^student\.path is .*, of which no model could be loaded: .*; restore"):
        from_folder(path=str(tmp_path), max_context_tokens=64)


def test_a_tokenizer_of_another_model_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    options: dict[str, Any] = TINY | {"max_context_tokens": 64, "seed": 0}
    from_scratch(vocabulary=["a", "b"], tokenizer="words", **options).save(tmp_path)
    num_rows = len(word_tokenizer(["a", "b"]))
    word_tokenizer(["a", "b", "c"]).save_pretrained(tmp_path)
    said = (
        rf"has tokens up to {num_rows}, but its model embeds {num_rows}: .*resize_token_embeddings\(len\(tokenizer\)\)"
    )
    with pytest.raises(ConfigError, match=said):
        from_folder(path=str(tmp_path), max_context_tokens=64)


def test_a_model_without_embeddings_of_later_places_is_refused(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(["a"])
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert from_folder(path=str(tmp_path), max_context_tokens=32).max_context_tokens == 32
    with pytest.raises(ConfigError, match=r"reads 32 tokens, .* is 64: lower student\.max_context_tokens"):
        from_folder(path=str(tmp_path), max_context_tokens=64)
