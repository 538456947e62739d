"""The engine without a model: babble that can be repeated."""

from __future__ import annotations

import asyncio

from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.protocols import Generation, Sampling
from dagger_exp.types import Key

END = 2
PROMPT = [5, 6, END, 7, 8]


def generate(engine: ScriptedEngine, index: int, prompt: list[int], max_new_tokens: int = 8) -> Generation:
    return asyncio.run(engine.generate(prompt, Sampling(max_new_tokens, key=Key(0, 0, "t", index))))


def test_it_says_words_of_its_prompt_and_ends() -> None:
    for index in range(100):
        *words, last = generate(ScriptedEngine(end_id=END), index, PROMPT).token_ids
        assert last == END
        assert set(words) <= {5, 6, 7, 8}
        assert len(words) <= 3


def test_it_is_a_function_of_prompt_and_key() -> None:
    def spoken(prompt: list[int]) -> list[tuple[int, ...]]:
        return [tuple(generate(ScriptedEngine(end_id=END), index, prompt).token_ids) for index in range(50)]

    assert spoken(PROMPT) == spoken(PROMPT)
    assert len(set(spoken(PROMPT))) > 20
    assert spoken(PROMPT) != spoken([6, 5, END, 7, 8])


def test_it_keeps_to_its_length_and_tells_its_version() -> None:
    engine = ScriptedEngine(end_id=END)
    engine.load_weights(4, None)
    for max_new_tokens in (1, 2, 3):
        found = [generate(engine, index, PROMPT, max_new_tokens) for index in range(50)]
        assert all(1 <= len(answer.token_ids) == len(answer.logprobs) <= max_new_tokens for answer in found)
        assert {answer.policy_version for answer in found} == {4}
