"""A language model as a policy: what it asks of its engine, and how it reads the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dagger_exp.chat.conversation import Chat
from dagger_exp.engines.hf import HfEngine
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ContextError
from dagger_exp.policies.llm import AnswerError, LanguagePolicy, ModelTeacher
from dagger_exp.protocols import Generation, Sampling
from dagger_exp.training.student import from_scratch
from dagger_exp.training.tokenizers import byte_tokenizer
from dagger_exp.types import Key, Message, Response, State, Usage

torch.set_num_threads(1)
WORLD = RepoRepair()
STUDENT = from_scratch(
    vocabulary=WORLD.vocabulary(),
    tokenizer="words",
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    max_context_tokens=64,
    seed=0,
)
CHAT = STUDENT.chat
MESSAGES = [Message("user", "repo f0 f1")]


def policy(temperature: float = 1.0, top_p: float = 1.0) -> LanguagePolicy:
    engine = HfEngine(end_id=CHAT.end_id, pad_id=STUDENT.tokenizer.pad_token_id)
    engine.load_weights(7, STUDENT.model)
    return LanguagePolicy(engine=engine, chat=CHAT, max_new_tokens=4, temperature=temperature, top_p=top_p)


def act(policy: LanguagePolicy, turn_index: int = 0, task_id: str = "t") -> Response:
    state = State(MESSAGES, CHAT.open(MESSAGES).prompt_ids, Key(0, 0, task_id, 0, turn_index))
    return asyncio.run(policy.act(state, WORLD.make(WORLD.tasks("train")[0])))


def test_a_response_is_what_its_tokens_say() -> None:
    response = act(policy())
    assert response.message == CHAT.parse(response.token_ids)
    assert len(response.token_ids) == len(response.logprobs) <= 4
    assert response.finish_reason == ("stop" if response.token_ids[-1] == CHAT.end_id else "length")
    assert response.policy_version == 7


def test_samples_are_functions_of_the_state_alone() -> None:
    tokens = [tuple(act(policy(), turn_index).token_ids) for turn_index in range(20)]
    assert len(set(tokens)) > 10
    assert tokens == [tuple(act(policy(), turn_index).token_ids) for turn_index in range(20)]


def test_temperature_and_nucleus_reach_the_engine() -> None:
    for greedy in (policy(temperature=0.0), policy(top_p=1e-6)):
        assert len({tuple(act(greedy, turn_index).token_ids) for turn_index in range(5)}) == 1


class Says(ScriptedEngine):
    """Always gives the same answer."""

    def __init__(self, chat: Chat, said: str) -> None:
        super().__init__(end_id=chat.end_id)
        self.said = [*chat.tokenizer.encode(said), chat.end_id]

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        return Generation(self.said, [0.0] * len(self.said), "stop", self.version)


@pytest.mark.parametrize("said", ["<think>hm</think> ls", "hm\n</think>\n\nls"])
def test_what_a_teacher_thinks_is_no_part_of_its_answer(said: str) -> None:
    tokenizer: Any = byte_tokenizer()
    chat = Chat(tokenizer)
    teacher = ModelTeacher(engine=Says(chat, said), chat=chat, max_new_tokens=64, max_context_tokens=256)
    assert act(teacher).message == Message("assistant", "ls")


def test_a_teacher_whose_answer_was_cut_or_says_nothing_gives_no_label() -> None:
    student = policy(temperature=3.0)
    teacher = ModelTeacher(
        engine=student.engine, chat=CHAT, max_new_tokens=4, temperature=3.0, max_context_tokens=64, id="big"
    )
    num_prompt_tokens, seen = len(CHAT.open(MESSAGES).prompt_ids), set[str]()
    for turn_index in range(400):
        said = act(student, turn_index, "big t")  # a teacher draws with coins of its own
        usage = Usage(num_prompt_tokens, len(said.token_ids))
        if said.finish_reason == "stop" and said.message.content:
            assert act(teacher, turn_index) == Response(said.message, usage=usage)
            seen.add("whole")
        else:
            with pytest.raises(AnswerError, match=r"big (is empty|was cut: raise teacher\.max_new_tokens)") as refused:
                act(teacher, turn_index)
            assert refused.value.usage == usage
            seen.add(said.finish_reason)
    assert seen == {"whole", "length", "stop"}


def test_a_conversation_that_leaves_no_room_for_an_answer_is_told_with_both_lengths() -> None:
    num_tokens = len(CHAT.open(MESSAGES).prompt_ids)
    teacher = ModelTeacher(
        engine=policy().engine, chat=CHAT, max_new_tokens=20, max_context_tokens=num_tokens + 19, id="big"
    )
    said = (
        rf"^big reads {num_tokens + 19} tokens; the prompt has {num_tokens}, and the answer may have 20: raise teacher"
    )
    with pytest.raises(ContextError, match=said):
        act(teacher)
