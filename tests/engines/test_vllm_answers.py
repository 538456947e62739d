"""What is made of a server's answers, also where it is none that vLLM gives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.engines.vllm import VllmEngine
from dagger_exp.engines.vllm_server import VllmServer
from dagger_exp.errors import EngineError
from dagger_exp.protocols import Generation, Sampling, Scores
from dagger_exp.types import Usage
from tests.provider import Provider, serving

SAID: dict[str, Any] = {"token_ids": [5, 2], "logprobs": {"token_logprobs": [-0.5, -1.0]}, "finish_reason": "length"}
ROWS: list[Any] = [None, {"6": {"logprob": -0.5, "rank": 1}}, {"7": {"logprob": -1.0, "rank": 1}}]
UNLOADED: Any = SimpleNamespace(lora_rank=None)
"""The server is there, and gets no weights."""


def asked(answer: Any, folder: Path, what: str) -> Any:
    """Return what an engine makes of an answer."""
    provider = Provider()
    provider.answers["/v1/completions"] = lambda body: answer
    with serving(provider) as address:
        found = VllmEngine(
            student=UNLOADED,
            end_id=2,
            folder=folder,
            server=VllmServer(),
            addresses=[address],
            endpoint=lambda address: Endpoint(address=address, first_pause_s=0.01),
        )

        async def ask() -> Generation | Scores:
            async with found.connected():
                return await (found.score([5, 6, 7]) if what == "score" else found.generate([5, 6], Sampling(4)))

        return asyncio.run(ask())


def test_an_answer_is_tokens_with_their_log_probabilities(tmp_path: Path) -> None:
    assert asked({"choices": [SAID]}, tmp_path, "generate") == Generation([5, 2], [-0.5, -1.0], "length", -1)
    assert asked({"choices": [{"prompt_logprobs": ROWS}]}, tmp_path, "score") == Scores([-0.5, -1.0], usage=Usage())


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"choices": []},
        {"choices": ["a"]},
        {"choices": [{**SAID, "logprobs": {}}]},
        {"choices": [{**SAID, "logprobs": {"token_logprobs": [-0.5]}}]},
        {"choices": [{**SAID, "logprobs": {"token_logprobs": [-0.5, None]}}]},
        {"choices": [{**SAID, "token_ids": [], "logprobs": {"token_logprobs": []}}]},
    ],
)
def test_an_answer_in_another_form_is_an_error_that_names_the_server(answer: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^http://127\S+ answers in a form that is not understood: "):
        asked(answer, tmp_path, "generate")


@pytest.mark.parametrize("lacking", ["token_ids", "logprobs"])
def test_a_server_that_tells_no_tokens_is_no_vllm(lacking: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="returns no token ids: it must be a vLLM server"):
        asked({"choices": [{**SAID, lacking: None}]}, tmp_path, "generate")


@pytest.mark.parametrize("reason", ["repetition", None])
def test_an_answer_that_a_server_broke_off_is_nobodys_action(reason: str | None, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=rf"^http://127\S+ broke off an answer: its finish_reason is {reason!r}"):
        asked({"choices": [{**SAID, "token_ids": [], "finish_reason": reason}]}, tmp_path, "generate")


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"choices": {}},
        {"choices": [{"prompt_logprobs": ROWS[:2]}]},
        {"choices": [{"prompt_logprobs": [*ROWS[:2], {"8": ROWS[2]["7"]}]}]},
        {"choices": [{"prompt_logprobs": [*ROWS[:2], None]}]},
        {"choices": [{"prompt_logprobs": [*ROWS[:2], {"7": {"logprob": None, "rank": 1}}]}]},
    ],
)
def test_scores_in_another_form_are_an_error_that_names_the_server(answer: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^http://127\S+ answers in a form that is not understood: "):
        asked(answer, tmp_path, "score")


def test_a_server_that_scores_no_prompt_is_no_vllm(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="gives no log-probabilities of a prompt: it must be a vLLM server"):
        asked({"choices": [{"prompt_logprobs": None}]}, tmp_path, "score")
