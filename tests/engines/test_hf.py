"""Tokens generated in process: held against full forward passes of the very same model."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel

from dagger_exp.engines.hf import HfEngine
from dagger_exp.errors import ConfigError, EngineError, EnvError
from dagger_exp.protocols import Generation, Sampling
from dagger_exp.training.student import from_scratch
from dagger_exp.types import Key

torch.set_num_threads(1)
WORDS = [f"w{index}" for index in range(14)]
END, PAD = 2, 0
PROMPTS = [[6 + (3 * row + place) % 14 for place in range(1 + 2 * row)] for row in range(8)]


@pytest.fixture
def model() -> Any:
    """Return a tiny model whose distributions are neither flat nor blind to what stands before."""
    student = from_scratch(
        vocabulary=WORDS,
        tokenizer="words",
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        max_context_tokens=64,
        seed=1,
    )
    assert (student.chat.end_id, student.tokenizer.pad_token_id) == (END, PAD)
    with torch.no_grad():
        for weight in student.model.parameters():
            weight.mul_(8.0 if weight.dim() == 2 else 1.0)
    return student.model


@pytest.fixture
def engine(model: Any) -> HfEngine:
    engine = HfEngine(end_id=END, pad_id=PAD)
    engine.load_weights(3, model)
    return engine


def key(index: int) -> Key:
    return Key(0, 0, "t", index)


def sampled(index: int, max_new_tokens: int = 6, temperature: float = 1.0, top_p: float = 1.0) -> Sampling:
    return Sampling(max_new_tokens, temperature, top_p, key(index))


Ask = tuple[Sequence[int], Sampling]


def answers(engine: HfEngine, asked: Sequence[Ask]) -> list[Generation]:
    async def ask() -> list[Generation]:
        return await asyncio.gather(*(engine.generate(prompt, sampling) for prompt, sampling in asked))

    return asyncio.run(ask())


def failures(engine: HfEngine, asked: Sequence[Ask]) -> list[Generation | BaseException]:
    async def ask() -> list[Generation | BaseException]:
        return await asyncio.gather(*(engine.generate(*each) for each in asked), return_exceptions=True)

    return asyncio.run(ask())


def full_logprobs(model: Any, prompt: Sequence[int], response: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """Return log-probabilities (num_response_tokens, vocabulary) from one pass over the whole sequence, no cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0].float()
    return torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, dim=-1)


@contextmanager
def watching(model: Any) -> Iterator[list[tuple[int, bool]]]:
    """Collect the number of rows of each forward pass, and whether the model was in train mode."""
    seen: list[tuple[int, bool]] = []

    def watch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((len(kwargs["input_ids"]), module.training))

    handle = model.register_forward_pre_hook(watch, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.5])
def test_a_draw_is_a_function_of_its_key_and_not_of_its_batch(engine: HfEngine, temperature: float) -> None:
    asked = [(prompt, sampled(row, temperature=temperature)) for row, prompt in enumerate(PROMPTS)]
    together = answers(engine, asked)
    for others in (answers(engine, asked[::-1])[::-1], [answers(engine, [each])[0] for each in asked]):
        for here, there in zip(together, others, strict=True):
            assert here.token_ids == there.token_ids
            assert here.logprobs == pytest.approx(there.logprobs, abs=1e-4)


def test_padding_is_not_seen_by_a_model_that_counts_positions_from_the_start() -> None:
    config = GPT2Config(
        vocab_size=20, n_positions=64, n_embd=16, n_layer=2, n_head=2, eos_token_id=END, bos_token_id=END
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(30.0)
    engine = HfEngine(end_id=END, pad_id=PAD)
    engine.load_weights(0, model)
    for prompt, answer in zip(
        PROMPTS, answers(engine, [(prompt, Sampling(6, 0.0)) for prompt in PROMPTS]), strict=True
    ):
        expected = full_logprobs(model.eval(), prompt, answer.token_ids).max(dim=-1)
        assert list(answer.token_ids) == expected.indices.tolist()
        assert answer.logprobs == pytest.approx(expected.values.tolist(), abs=1e-4)


def test_keys_decide_each_draw(engine: HfEngine) -> None:
    tokens = [tuple(answer.token_ids) for answer in answers(engine, [(PROMPTS[3], sampled(i)) for i in range(40)])]
    assert len(set(tokens)) > 20
    twice = answers(engine, [(PROMPTS[3], sampled(7)), (PROMPTS[3], sampled(7))])
    assert twice[0].token_ids == twice[1].token_ids == list(tokens[7])


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_a_full_pass(engine: HfEngine, model: Any, temperature: float) -> None:
    asked = [(PROMPTS[index % 8], sampled(index, temperature=temperature)) for index in range(32)]
    for (prompt, _), answer in zip(asked, answers(engine, asked), strict=True):
        table = full_logprobs(model, prompt, answer.token_ids, temperature)
        expected = table[range(len(answer.token_ids)), list(answer.token_ids)].tolist()
        assert answer.logprobs == pytest.approx(expected, abs=1e-4)


def test_greedy_takes_the_likeliest_token_of_a_full_pass(engine: HfEngine, model: Any) -> None:
    greedy = Sampling(max_new_tokens=10, temperature=0.0)
    for prompt, answer in zip(PROMPTS, answers(engine, [(prompt, greedy) for prompt in PROMPTS]), strict=True):
        table = full_logprobs(model, prompt, answer.token_ids)
        assert list(answer.token_ids) == table.argmax(dim=-1).tolist()
        assert answer.logprobs == pytest.approx(table.max(dim=-1).values.tolist(), abs=1e-4)


def first_tokens(engine: HfEngine, prompt: Sequence[int], num_draws: int, **options: float) -> np.ndarray:
    asked = [(prompt, sampled(index, 1, **options)) for index in range(num_draws)]
    return np.array([answer.token_ids[0] for answer in answers(engine, asked)])


def assert_frequencies(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    """Compare by chi-square, with the rare tokens taken together."""
    counts, expected = np.bincount(tokens, minlength=len(probabilities)), probabilities * len(tokens)
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    assert chisquare(np.append(counts[~rare], counts[rare].sum()), expected, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_come_as_often_as_the_model_says(engine: HfEngine, model: Any, temperature: float) -> None:
    probabilities = full_logprobs(model, PROMPTS[4], [END], temperature)[0].exp().numpy()
    assert np.sort(probabilities)[-4:].sum() < 0.99
    assert_frequencies(first_tokens(engine, PROMPTS[4], 3000, temperature=temperature), probabilities)


def test_each_token_of_a_response_has_a_coin_of_its_own(engine: HfEngine, model: Any) -> None:
    found = [tuple(answer.token_ids) for answer in answers(engine, [(PROMPTS[4], sampled(i, 2)) for i in range(3000)])]
    openings = [tokens[0] for tokens in found if len(tokens) == 2]
    first = max(set(openings), key=openings.count)
    seconds = np.array([tokens[1] for tokens in found if len(tokens) == 2 and tokens[0] == first])
    assert_frequencies(seconds, full_logprobs(model, [*PROMPTS[4], first], [END])[0].exp().numpy())


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.9])
def test_the_nucleus_is_kept_and_nothing_else(engine: HfEngine, model: Any, top_p: float) -> None:
    probabilities = full_logprobs(model, PROMPTS[4], [END])[0].exp().numpy()
    order = np.argsort(-probabilities)
    size = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    nucleus = np.zeros_like(probabilities)
    nucleus[order[:size]] = probabilities[order[:size]]
    tokens = first_tokens(engine, PROMPTS[4], 1500, top_p=top_p)
    assert set(tokens) <= set(order[:size])
    assert_frequencies(tokens, nucleus / nucleus.sum())


@pytest.mark.parametrize("top_p", [0.3, 0.6])
def test_logprobs_are_those_of_the_nucleus_that_a_token_was_drawn_from(
    engine: HfEngine, model: Any, top_p: float
) -> None:
    for index in range(5):
        (answer,) = answers(engine, [(PROMPTS[4], sampled(index, 1, top_p=top_p))])
        whole = full_logprobs(model, PROMPTS[4], answer.token_ids)[0]
        ordered = whole.exp().sort(descending=True).values
        mass = ordered[: int((ordered.cumsum(0) < top_p).sum()) + 1].sum()
        assert answer.logprobs == pytest.approx([(whole[answer.token_ids[0]] - mass.log()).item()], abs=1e-5)


def test_one_batch_may_hold_different_samplings(engine: HfEngine) -> None:
    samplings = [Sampling(2, 0.0), sampled(1, 5), sampled(1, 5, top_p=0.2), sampled(1, 9, temperature=2.0)]
    asked = [(PROMPTS[2], sampling) for sampling in samplings]
    assert [a.token_ids for a in answers(engine, asked)] == [answers(engine, [each])[0].token_ids for each in asked]


def test_a_response_ends_with_its_end_token_or_is_cut(engine: HfEngine) -> None:
    found = answers(engine, [(PROMPTS[index % 8], sampled(index, 5, temperature=2.0)) for index in range(100)])
    for answer in found:
        assert END not in answer.token_ids[:-1]
        assert len(answer.logprobs) == len(answer.token_ids) <= 5
        assert (answer.finish_reason == "stop") == (answer.token_ids[-1] == END)
        assert answer.finish_reason == "stop" or len(answer.token_ids) == 5
    assert {answer.finish_reason for answer in found} == {"stop", "length"}


@pytest.mark.parametrize("eos_token_id", [7, [END, 7, 11]])
def test_a_response_ends_at_each_end_token_of_the_generation_config(model: Any, eos_token_id: int | list[int]) -> None:
    model.generation_config.eos_token_id = eos_token_id
    engine = HfEngine(end_id=END, pad_id=PAD)
    engine.load_weights(0, model)
    ends = {END, 7} | ({11} if isinstance(eos_token_id, list) else set())
    found = answers(engine, [(PROMPTS[index % 8], sampled(index, 9, temperature=2.0)) for index in range(100)])
    assert {answer.token_ids[-1] for answer in found if answer.finish_reason == "stop"} == ends
    for answer in found:
        assert not ends & set(answer.token_ids[:-1])
        assert answer.finish_reason == "stop" or len(answer.token_ids) == 9


@pytest.mark.parametrize("training", [True, False])
def test_it_generates_in_evaluation_mode_and_restores_the_mode_before(model: Any, training: bool) -> None:
    engine = HfEngine(end_id=END, pad_id=PAD)
    engine.load_weights(0, model.train(training))
    with watching(model) as seen:
        answers(engine, [(PROMPTS[0], sampled(0))])
        failures(engine, [([10_000], sampled(0))])
    assert not any(in_train_mode for _, in_train_mode in seen)
    assert {module.training for module in model.modules()} == {training}
    model(input_ids=torch.tensor([PROMPTS[1]])).logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_requests_that_wait_form_one_batch_of_bounded_size(model: Any) -> None:
    engine = HfEngine(end_id=END, pad_id=PAD, max_batch_size=6)
    engine.load_weights(0, model)
    asked = [(prompt, sampled(row)) for row, prompt in enumerate(PROMPTS)]
    with watching(model) as seen:
        found = answers(engine, asked)
    assert {num_rows for num_rows, _ in seen} == {6, 2}
    assert [a.token_ids for a in found] == [answers(engine, [each])[0].token_ids for each in asked]


def test_weights_are_used_as_they_are_at_the_time(engine: HfEngine, model: Any) -> None:
    asked = [(prompt, Sampling(6, 0.0)) for prompt in PROMPTS]
    before = answers(engine, asked)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-3.0)
    engine.load_weights(4, model)
    after = answers(engine, asked)
    assert {answer.policy_version for answer in before} == {3}
    assert {answer.policy_version for answer in after} == {4}
    assert [answer.token_ids for answer in before] != [answer.token_ids for answer in after]
    table = full_logprobs(model, PROMPTS[5], after[5].token_ids)
    assert list(after[5].token_ids) == table.argmax(dim=-1).tolist()


def test_a_failure_reaches_everybody_who_waits_and_nobody_after(engine: HfEngine) -> None:
    good = [(prompt, sampled(row)) for row, prompt in enumerate(PROMPTS)]
    failed = failures(engine, [*good[:3], ([10_000], sampled(9)), *good[3:]])
    assert len(failed) == 9
    assert all(isinstance(failure, EngineError) and "hf engine: IndexError" in str(failure) for failure in failed)
    assert all(answer.token_ids for answer in answers(engine, good))


@pytest.mark.parametrize("max_batch_size", [0, -1])
def test_a_batch_of_nobody_is_refused(max_batch_size: int) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.max_batch_size is {max_batch_size}; it must be at least 1"):
        HfEngine(end_id=END, pad_id=PAD, max_batch_size=max_batch_size)


def test_a_batch_that_cannot_be_put_together_fails_and_leaves_nobody_waiting(engine: HfEngine) -> None:
    unordered = [(PROMPTS[0], Sampling(3, key=Key(0, 0, task, 0))) for task in ("t", 7)]  # pyright: ignore[reportArgumentType] - the mistake
    failed = failures(engine, unordered)
    assert all("hf engine: TypeError" in str(failure) for failure in failed)
    assert answers(engine, unordered[:1])[0].token_ids


def test_a_response_that_may_have_no_token_ends(engine: HfEngine) -> None:
    assert [len(answer.token_ids) for answer in answers(engine, [(PROMPTS[0], sampled(0, 0))])] == [1]


def test_sampling_without_a_key_and_an_engine_without_weights_are_refused(engine: HfEngine) -> None:
    empty = HfEngine(end_id=END, pad_id=PAD)
    for failing, sampling in ((engine, Sampling(3)), (empty, sampled(0))):
        (failure,) = failures(failing, [(PROMPTS[0], sampling)])
        assert isinstance(failure, EngineError)


def test_an_episode_that_gives_up_does_not_disturb_the_others(engine: HfEngine) -> None:
    async def script() -> list[Generation]:
        asked = [asyncio.create_task(engine.generate(prompt, sampled(row))) for row, prompt in enumerate(PROMPTS)]
        asyncio.get_running_loop().call_soon(asked[3].cancel)
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(found.pop(3), asyncio.CancelledError)
        return [answer for answer in found if isinstance(answer, Generation)]

    alone = [answers(engine, [(prompt, sampled(row))])[0] for row, prompt in enumerate(PROMPTS) if row != 3]
    assert [answer.token_ids for answer in asyncio.run(script())] == [answer.token_ids for answer in alone]


async def ask(engine: HfEngine, row: int, turns: Sequence[int] = (0, 1, 2)) -> list[Generation]:
    keys = [key(row)._replace(turn_index=turn) for turn in turns]
    return [await engine.generate(PROMPTS[row], Sampling(6, key=each)) for each in keys]


def begun(*episodes: Coroutine[Any, Any, Any]) -> dict[Key, asyncio.Task[Any]]:
    return {key(row)._replace(turn_index=-1): asyncio.create_task(each) for row, each in enumerate(episodes)}


def test_a_batch_waits_for_each_of_its_members_that_is_not_over(engine: HfEngine, model: Any) -> None:
    async def play() -> list[Any]:
        is_full, is_out = asyncio.Event(), asyncio.Event()

        async def come_late() -> list[Generation]:
            await is_out.wait()
            return await ask(engine, 0)

        async def time_out_and_ask_again() -> list[Generation]:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await ask(engine, 1)
            is_full.set()
            return await ask(engine, 1)

        async def fail() -> list[Generation]:
            await is_out.wait()
            raise EnvError("the disk is gone")

        others = (ask(engine, 2, (0,)), ask(engine, 3), fail(), ask(engine, 5, ()), ask(engine, 6), ask(engine, 7))
        tasks = begun(come_late(), time_out_and_ask_again(), *others)
        *_, one, last = tasks.values()
        last.cancel()  # before it has begun
        with engine.members(tasks, lambda at: at.turn_index + 1, 60.0):
            await is_full.wait()
            one.cancel()  # while it waits
            is_out.set()
            return await asyncio.gather(*tasks.values(), return_exceptions=True)

    with watching(model) as seen:
        found = asyncio.run(play())
        assert [len(each) if isinstance(each, list) else type(each) for each in found] == [
            *(3, 3, 1, 3, EnvError, 0, asyncio.CancelledError, asyncio.CancelledError)
        ]
        in_batches = len(seen)
        assert [num_rows for num_rows, _ in groupby(num_rows for num_rows, _ in seen)] == [4, 3]
        alone = answers(engine, [(PROMPTS[0], sampled(0))])
        assert {num_rows for num_rows, _ in seen[in_batches:]} == {1}, "the members are gone"
    assert found[0][0].token_ids == alone[0].token_ids


def test_a_batch_does_not_wait_for_who_asks_at_a_later_turn_only(engine: HfEngine, model: Any) -> None:
    async def play() -> None:
        is_later = asyncio.Event()

        async def be_played_by_the_student() -> None:
            await ask(engine, 0, (0, 1))
            is_later.set()
            await ask(engine, 0, (2,))

        async def be_played_by_the_teacher() -> None:
            await is_later.wait()
            await ask(engine, 1, (2, 3))

        tasks = begun(be_played_by_the_student(), be_played_by_the_teacher())
        with engine.members(tasks, lambda at: max(at.turn_index + 1, 2 * at.episode_index), 60.0):
            await asyncio.gather(*tasks.values())

    with watching(model) as seen:
        asyncio.run(play())
    assert [num_rows for num_rows, _ in groupby(num_rows for num_rows, _ in seen)] == [1, 2, 1]


def test_one_that_hangs_is_not_waited_for_for_ever(engine: HfEngine) -> None:
    async def play() -> int:
        tasks = begun(ask(engine, 0), asyncio.Event().wait())
        first, hanging = tasks.values()
        with engine.members(tasks, lambda at: at.turn_index + 1, 0.05):
            found = await first
            hanging.cancel()
            return len(found)

    assert asyncio.run(asyncio.wait_for(play(), 20)) == 3


def test_rows_stand_in_the_order_of_their_keys(engine: HfEngine, model: Any) -> None:
    asked = [(PROMPTS[row], sampled(row, 1)) for row in (5, 2, 7, 0)]
    seen: list[list[int]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"].sum(1).tolist()), with_kwargs=True
    )
    answers(engine, asked)
    handle.remove()
    assert seen == [[len(PROMPTS[row]) for row in (0, 2, 5, 7)]]


def test_generating_leaves_the_global_random_state_alone(engine: HfEngine) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    answers(engine, [(PROMPTS[0], sampled(0))])
    assert torch.equal(torch.get_rng_state(), state)
