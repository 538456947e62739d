"""Does a vLLM server follow the training, whatever happens to it? A stand-in that computes with what it has loaded."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from transformers import AutoModelForCausalLM

from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.engines.scoring import score
from dagger_exp.engines.vllm import VllmEngine
from dagger_exp.engines.vllm_server import VllmServer
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ConfigError, DriftError, EngineError
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.policies.mixture import StudentOnly
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.protocols import Generation, Sampling
from dagger_exp.rollout.collector import Collector
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.plan import ShuffledTasks
from dagger_exp.rollout.runner import Runner
from dagger_exp.store.store import Store
from dagger_exp.training.student import Lora, Student, from_scratch
from dagger_exp.types import Episode, Key
from tests.provider import MODEL, Provider, serving

PROMPTS = ([5, 6, 7, 8], [8, 7, 6, 5], [9, 5, 9, 6])
ASKED = ["/v1/completions"] * 2
"""The probe, and whether a log-probability is the one that a token was drawn with."""
SENT = ["/collective_rpc", "/reset_prefix_cache", *ASKED]
"""How full weights come to a server, and what it is asked then."""
WORDS = [f"w{index}" for index in range(20)]
LOADING = threading.Lock()
"""Servers are threads here, and Transformers loads one model at a time."""


class Vllm(Provider):
    """A vLLM server in little: it repeats the last token of a prompt, at the log-probability of the weights it has.

    Args:
        first: the weights that it was started with.
        is_in_dev_mode: whether its weights can be reloaded.
        is_processed: whether what a request allows counts for a log-probability.
    """

    def __init__(self, first: Any, is_in_dev_mode: bool = True, is_processed: bool = True) -> None:
        super().__init__()
        self.first = self.model = first
        self.is_in_dev_mode, self.is_processed, self.adapters = is_in_dev_mode, is_processed, list[str]()
        self.answers |= {
            "/v1/completions": self._complete,
            "/collective_rpc": self._reload,
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
        }

    def restart(self) -> None:
        """Break all requests that are under way, as the end of a process does, and have the first weights again."""
        self.model, self.faults = self.first, ["cut"] * len(PROMPTS)

    @property
    def paths(self) -> list[str]:
        """What it was asked since the last look."""
        paths = [path for path, _, _ in self.requests]
        self.requests.clear()
        return paths

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in (MODEL, *self.adapters)]})

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["model"] not in (MODEL, *self.adapters):
            raise web.HTTPNotFound(text=f"The model `{body['model']}` does not exist.")
        ids = body["prompt"]
        logprobs = score(self.model, ids).logprobs
        if "prompt_logprobs" in body:
            rows = [{str(token): {"logprob": value}} for token, value in zip(ids[1:], logprobs, strict=True)]
            return {"choices": [{"prompt_logprobs": [None, *rows]}]}
        if self.is_processed and "allowed_token_ids" in body:
            logprobs = [0.0]
        said = {"token_ids": ids[-1:], "logprobs": {"token_logprobs": logprobs[-1:]}, "finish_reason": "stop"}
        return {"choices": [said]}

    def _reload(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self.is_in_dev_mode:
            raise web.HTTPNotFound
        with LOADING:
            self.model = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"])
        return {}

    def _load(self, body: dict[str, Any]) -> dict[str, Any]:
        self.adapters.append(body["lora_name"])
        return {}

    def _unload(self, body: dict[str, Any]) -> dict[str, Any]:
        self.adapters.remove(body["lora_name"])
        return {}


def student(seed: int = 0, finetuning: str = "full", words: Sequence[str] = WORDS) -> Student:
    torch.set_num_threads(1)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 32,
        "max_context_tokens": 256,
    }
    return from_scratch(
        vocabulary=words, tokenizer="words", seed=seed, finetuning=finetuning, lora=Lora(rank=2), **sizes
    )


def moved(own: Student) -> Any:
    """Change what is trained of a student, as a round of training does."""
    with torch.no_grad():
        for parameter in own.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return own.model


def engine(own: Student, folder: Path, *addresses: str, **settings: Any) -> VllmEngine:
    return VllmEngine(
        student=own,
        end_id=own.chat.end_id,
        folder=folder,
        server=VllmServer(),
        addresses=addresses,
        endpoint=lambda address: Endpoint(address=address, first_pause_s=0.01),
        probe_tolerance=1e-4,
        **settings,
    )


def generated(found: VllmEngine) -> list[Generation]:
    async def generate() -> list[Generation]:
        async with found.connected():
            keys = [Key(0, 0, "t", 0, turn) for turn in range(len(PROMPTS))]
            answers = await asyncio.gather(
                *(found.generate(ids, Sampling(1, 1.0, 1.0, key)) for ids, key in zip(PROMPTS, keys, strict=True))
            )
            await found.confirm()
            return answers

    return asyncio.run(generate())


def logprobs(answers: Sequence[Generation]) -> list[float]:
    return [value for answer in answers for value in answer.logprobs]


def test_a_server_that_comes_back_in_a_round_gets_the_weights_before_an_answer_counts(tmp_path: Path) -> None:
    own, server = student(), Vllm(student().model)
    with serving(server) as address:
        found = engine(own, tmp_path, address)
        found.load_weights(1, moved(own))
        before = logprobs(generated(found))
        assert before == pytest.approx([score(own.model, ids).logprobs[-1] for ids in PROMPTS], abs=1e-4)
        server.restart()
        assert logprobs(generated(found)) == pytest.approx(before, abs=1e-4)
        assert server.model is not server.first
        salts = {body["cache_salt"] for path, body, _ in server.requests if path == "/v1/completions"}
        assert len(salts) == 2, "what the first weights have computed is not reused"


def test_a_server_that_comes_back_without_its_adapter_gets_it_again(tmp_path: Path) -> None:
    own = student(finetuning="lora")
    server = Vllm(own.model)
    with serving(server) as address:
        found = engine(own, tmp_path, address)
        found.load_weights(1, own.model)
        before, names = logprobs(generated(found)), list(server.adapters)
        server.restart()
        server.adapters.clear()
        assert logprobs(generated(found)) == before
        assert set(server.adapters) == set(names) == {found.name}


def test_a_server_that_hangs_while_it_is_looked_at_holds_up_no_answer_of_another(tmp_path: Path) -> None:
    own, one, other = student(), Vllm(student().model), Vllm(student().model)
    with serving(one) as first, serving(other) as second:
        found = engine(own, tmp_path, first, second)
        found.load_weights(1, moved(own))
        one.faults = ["cut", "", "hang"]  # an answer, again, and the look at its weights
        hangs, goes_on, fail = threading.Event(), threading.Event(), one._fail

        async def hang(fault: str, request: web.Request) -> web.StreamResponse:
            if fault == "hang":
                hangs.set()
                await asyncio.to_thread(goes_on.wait, 60)
            return await fail(fault, request)

        one._fail = hang  # pyright: ignore[reportAttributeAccessIssue]

        async def generate() -> None:
            def asked(episode_index: int) -> Coroutine[Any, Any, Generation]:
                return found.generate(PROMPTS[0], Sampling(1, 1.0, 1.0, Key(0, 0, "t", episode_index, 0)))

            async with found.connected():
                slow = asyncio.create_task(asked(0))
                await asyncio.to_thread(hangs.wait, 20)
                try:
                    await asyncio.wait_for(asked(1), 20)
                finally:
                    goes_on.set()
                await slow

        asyncio.run(generate())


def test_a_broken_connection_to_a_server_that_lives_sends_no_weights(tmp_path: Path) -> None:
    own, server = student(), Vllm(student().model)
    with serving(server) as address:
        found = engine(own, tmp_path, address)
        found.load_weights(1, moved(own))
        server.requests, server.faults = [], ["cut"]
        generated(found)
        assert server.paths == ["/v1/completions"] * 6, "three answers, one repeated, a probe, and one at the end"
        generated(found)
        assert server.paths == ["/v1/completions"] * 4


@pytest.mark.parametrize("how", ["cancelled", "refused"])
def test_no_answer_of_the_first_weights_counts_where_the_one_that_restores_them_is_cut(
    tmp_path: Path, how: str
) -> None:
    """One of three requests finds that the server was started again, and is cut while it sends the weights."""
    own, server = student(), Vllm(student().model)
    with serving(server) as address:
        found = engine(own, tmp_path, address)
        found.load_weights(1, moved(own))
        server.restart()
        send_again, answers = found.way.send_again, server.answers
        cut = list[asyncio.Task[Any] | None]()

        def refuse(body: dict[str, Any]) -> dict[str, Any]:
            answers.pop("/reset_prefix_cache")
            raise web.HTTPBadRequest(text="busy")

        async def cut_once(endpoint: Endpoint) -> None:
            await send_again(endpoint)
            if not cut:
                cut.append(asyncio.current_task())
                raise asyncio.CancelledError

        if how == "cancelled":
            found.way.send_again = cut_once  # pyright: ignore[reportAttributeAccessIssue]
        else:
            answers["/reset_prefix_cache"] = refuse

        async def generate() -> list[Generation | BaseException]:
            async with found.connected():
                keys = [Key(0, 0, "t", 0, turn) for turn in range(len(PROMPTS))]
                asked = (
                    found.generate(ids, Sampling(1, 1.0, 1.0, key)) for ids, key in zip(PROMPTS, keys, strict=True)
                )
                return await asyncio.gather(*asked, return_exceptions=True)

        got = asyncio.run(generate())
        assert sum(isinstance(answer, BaseException) for answer in got) == 1
        for ids, answer in zip(PROMPTS, got, strict=True):
            if isinstance(answer, Generation):
                assert answer.logprobs[0] == pytest.approx(score(own.model, ids).logprobs[-1], abs=1e-4)


def test_a_server_that_does_not_take_the_weights_again_is_no_student(tmp_path: Path) -> None:
    own, server = student(), Vllm(student().model)
    with serving(server) as address:
        found = engine(own, tmp_path, address)
        found.load_weights(1, moved(own))
        server.answers["/collective_rpc"] = lambda body: {}
        server.restart()
        with pytest.raises(DriftError, match="policy version 1"):
            generated(found)


@pytest.mark.parametrize("how", ["a request that is given up", "one attempt only"])
def test_a_server_that_comes_back_is_noticed_where_no_request_is_repeated(tmp_path: Path, how: str) -> None:
    own, server = student(), Vllm(student().model)
    with serving(server) as address:
        found = engine(own, tmp_path, address)
        found.load_weights(1, moved(own))
        [endpoint] = found.endpoints
        endpoint.max_attempts = 1
        server.faults = ["timeout" if how == "a request that is given up" else "cut"]

        async def interrupted() -> Generation:
            async with found.connected():
                sampling = Sampling(1, 1.0, 1.0, Key(0, 0, "t", 0, 0))
                with suppress(TimeoutError, EngineError):
                    await asyncio.wait_for(found.generate(PROMPTS[0], sampling), timeout=1)
                server.model = server.first
                return await found.generate(PROMPTS[0], sampling)

        answer = asyncio.run(interrupted())
        assert answer.logprobs[0] == pytest.approx(score(own.model, PROMPTS[0]).logprobs[-1], abs=1e-4)


def test_weights_that_another_run_has_sent_meanwhile_are_noticed_at_the_end(tmp_path: Path) -> None:
    own, server = student(), Vllm(student().model)
    with serving(server) as address:
        found = engine(own, tmp_path, address)
        found.load_weights(1, moved(own))
        server.model = server.first
        with pytest.raises(DriftError, match="another run uses it too"):
            generated(found)


def test_no_episode_of_other_weights_is_committed_whatever_ends_the_round(tmp_path: Path) -> None:
    """Another run sends its weights while a round is played; that is resumed once the server is its own again."""
    world, own = RepoRepair(max_turns=3), student(words=RepoRepair().vocabulary())
    server = Vllm(student(words=world.vocabulary()).model)

    def collected(address: str, version_1: Any, on_episode: Callable[[Episode], None]) -> list[Episode]:
        found = engine(own, tmp_path / "engine", address)
        found.load_weights(1, version_1)
        runner = Runner(
            world=world,
            student=LanguagePolicy(engine=found, chat=own.chat, max_new_tokens=4),
            teacher=ScriptedPolicy(),
            mixing=StudentOnly(),
            labeler=Labeler(),
            chat=own.chat,
            max_context_tokens=256,
        )
        store, tasks = Store(tmp_path / "rounds", "run"), world.tasks("train")
        collector = Collector(
            runner=runner,
            store=store,
            plan=ShuffledTasks(tasks=tasks, seed=0),
            concurrency=2,
            keeps=lambda round_index, reason: True,
        )
        return collector.collect(0, num_episodes=8, on_episode=on_episode)

    def taken(episode: Episode) -> None:
        if episode.episode_index == 2:
            server.model = server.first

    with serving(server) as address:
        with pytest.raises(DriftError, match="another run uses it too"):
            collected(address, moved(own), taken)
        assert 0 < len(Store(tmp_path / "rounds", "run").committed(0)) < 8
        for episode in collected(address, own.model, lambda episode: None):
            [first, *_] = episode.turns
            expected = score(own.model, first.context_ids).logprobs[-1]  # of the last token, which it repeats
            assert first.sampling_logprobs[0] == pytest.approx(expected, abs=1e-4)


def test_a_server_that_keeps_weights_within_the_tolerance_is_noticed(tmp_path: Path) -> None:
    own, server = student(), Vllm(student().model)
    with serving(server) as address:
        found = engine(own, tmp_path, address)
        found.probe.tolerance = 100.0
        found.load_weights(1, moved(own))
        server.answers["/collective_rpc"] = lambda body: {}
        with pytest.raises(DriftError, match="are nearer to those of version 1: it has not taken"):
            found.load_weights(2, moved(own))


def test_a_server_that_another_run_has_started_is_not_taken_for_our_own(tmp_path: Path) -> None:
    class Answering(VllmServer):
        def check_python(self) -> None: ...

        def command(self, model: str, **settings: Any) -> list[str]:
            return [sys.executable, "-m", "tests.provider"]

    own = student()
    found = VllmEngine(student=own, end_id=own.chat.end_id, folder=tmp_path, server=Answering())
    try:
        with pytest.raises(ConfigError, match=r"another server answers at http://.*: set engine\.server\.port"):
            found.load_weights(0, own.model)
    finally:
        found.close()


def test_a_server_without_dev_mode_is_refused_with_the_mend(tmp_path: Path) -> None:
    own = student()
    with serving(Vllm(own.model, is_in_dev_mode=False)) as address:
        mend = rf"^{address} has no /collective_rpc: start it with the line that dagger-serve prints\.$"
        with pytest.raises(ConfigError, match=mend):
            engine(own, tmp_path, address).load_weights(0, own.model)


@pytest.mark.parametrize("finetuning", ["full", "lora"])
def test_a_server_whose_log_probabilities_are_not_those_of_the_draw_is_refused(tmp_path: Path, finetuning: str) -> None:
    own = student(finetuning=finetuning)
    with serving(Vllm(own.model)) as first, serving(Vllm(own.model, is_processed=False)) as second:
        found = engine(own, tmp_path, first)
        found.endpoints.append(Endpoint(address=second))
        mend = rf"^{second} tells .* temperature and top_p: start it with --logprobs-mode processed_logprobs, "
        with pytest.raises(ConfigError, match=mend):
            found.load_weights(0, own.model)


def test_a_run_that_was_killed_leaves_no_adapter_at_a_server(tmp_path: Path) -> None:
    own = student(finetuning="lora")
    server = Vllm(own.model)
    server.adapters.append("another-run-v1-abc")
    with serving(server) as address:
        engine(own, tmp_path, address).load_weights(1, moved(own))  # is killed
        resumed = engine(own, tmp_path, address)
        resumed.load_weights(2, moved(own))
        assert server.adapters == ["another-run-v1-abc", resumed.name]
        resumed.load_weights(3, moved(own))
        assert server.adapters == ["another-run-v1-abc", resumed.name]
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["3"]


def test_a_server_sleeps_while_the_student_trains(tmp_path: Path) -> None:
    own = student()
    server = Vllm(own.model)
    with serving(server) as address:
        found = engine(own, tmp_path, address, sleeps=True)
        found.load_weights(0, own.model)
        assert server.paths == ["/wake_up", *SENT], "a run that was killed may have left it asleep"
        found.rest()
        found.rest()
        assert server.paths == ["/sleep"]
        found.load_weights(1, moved(own))
        assert server.paths == ["/wake_up", *SENT]
        found.load_weights(1, own.model)
        assert server.paths == ASKED
        found.rest()  # and is killed
        assert server.paths == ["/sleep"]
        engine(own, tmp_path, address, sleeps=True).load_weights(1, own.model)
        assert server.paths == ["/wake_up", *SENT]


def test_a_server_of_which_it_was_not_asked_does_not_sleep(tmp_path: Path) -> None:
    own = student()
    server = Vllm(own.model)
    with serving(server) as address:
        found = engine(own, tmp_path, address)
        found.load_weights(0, own.model)
        found.rest()
        assert server.paths == SENT
