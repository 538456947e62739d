"""A real vLLM server on a CPU, with a tiny Qwen3 and an adapter on it.

Needs an environment of its own with vLLM, whose interpreter DAGGER_EXP_VLLM_PYTHON names; `.ci/run` makes one.
"""

from __future__ import annotations

import asyncio
import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.engines.hf import HfEngine
from dagger_exp.engines.scoring import score
from dagger_exp.engines.vllm import VllmEngine
from dagger_exp.engines.vllm_server import VllmServer
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ConfigError, EngineError
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
from dagger_exp.types import Actor, Key, Message
from tests.commands import Call

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

WORLD = RepoRepair()
TOLERANCE = 1e-3
LORA = Lora(rank=8, alpha=16)
# On a CPU vLLM 0.32 dies of a prompt that is read in parts where the request has a seed.
ARGUMENTS = ["--enforce-eager", "--no-enable-chunked-prefill"]
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


STUDENT_ACTS = ["mixing=student", "schedule=none"]


def student(seed: int = 0, finetuning: str = "lora", lora: Lora = LORA, max_context_tokens: int = 1024) -> Student:
    """Return the student of conf/student/tiny.yaml."""
    return from_scratch(
        vocabulary=WORLD.vocabulary(),
        tokenizer="words",
        hidden_size=128,
        num_layers=2,
        num_heads=4,
        intermediate_size=256,
        max_context_tokens=max_context_tokens,
        seed=seed,
        finetuning=finetuning,
        lora=lora,
    )


def trained(model: Any, seed: int) -> Any:
    """Change what is trained of a model, as a round of training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def python() -> str:
    """Return the interpreter of the environment that has vLLM."""
    found = os.environ.get("DAGGER_EXP_VLLM_PYTHON")
    if not found:
        pytest.skip("DAGGER_EXP_VLLM_PYTHON names no environment with vLLM")
    return found


@contextmanager
def started(own: Student, folder: Path, *more: str, **variables: str) -> Iterator[VllmEngine]:
    """Start a server for a student, with more arguments and variables of the environment; send the first weights."""
    arguments, environment = [*ARGUMENTS, *more], CPU | variables
    server = VllmServer(
        python=python(), dtype="float32", start_timeout_s=1500, arguments=arguments, environment=environment
    )
    engine = VllmEngine(student=own, end_id=own.chat.end_id, folder=folder, server=server, probe_tolerance=TOLERANCE)
    try:
        engine.load_weights(0, own.model)
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VllmEngine, Student]]:
    """Return an engine that has started its server, and the student whose adapter it serves."""
    own = student()
    with started(own, tmp_path_factory.mktemp("engine")) as engine:
        yield engine, own


def at(engine: VllmEngine, own: Student, folder: Path, **settings: Any) -> VllmEngine:
    """Return another engine at the same server."""
    return VllmEngine(
        student=own,
        end_id=own.chat.end_id,
        folder=folder,
        server=engine.server,
        addresses=[engine.endpoints[0].address],
        **{"probe_tolerance": TOLERANCE, **settings},
    )


def prompts(own: Student, number: int = 12) -> list[list[int]]:
    texts = [task.data["bugs"][0] for task in WORLD.tasks("train")[:number]]
    return [own.chat.open([Message("user", f"fail {bug[0]} {bug[1]}")]).prompt_ids for bug in texts]


def generated(engine: Any, own: Student, temperature: float = 0.0) -> list[Generation]:
    async def all_of_them() -> list[Generation]:
        async with engine.connected():
            asked = [
                engine.generate(ids, Sampling(8, temperature, key=Key(0, 0, "t", index)))
                for index, ids in enumerate(prompts(own))
            ]
            return await asyncio.gather(*asked)

    return asyncio.run(all_of_them())


def in_process(own: Student) -> HfEngine:
    engine = HfEngine(end_id=own.chat.end_id, pad_id=own.tokenizer.pad_token_id)
    engine.load_weights(0, own.model)
    return engine


def ask(engine: VllmEngine, path: str) -> str:
    with urllib.request.urlopen(engine.endpoints[0].address + path, timeout=120) as answer:
        return answer.read().decode()


def test_every_version_of_the_adapter_is_served_and_the_one_before_is_not(served: tuple[VllmEngine, Student]) -> None:
    engine, own = served
    said: list[list[Any]] = []
    for version in (1, 2):
        engine.load_weights(version, trained(own.model, seed=version))
        assert engine.probe.drift < TOLERANCE
        answers = generated(engine, own)
        assert [list(a.token_ids) for a in answers] == [list(a.token_ids) for a in generated(in_process(own), own)]
        assert {answer.policy_version for answer in answers} == {version}
        said.append([list(answer.token_ids) for answer in answers])
        names = {card["id"] for card in json.loads(ask(engine, "/v1/models"))["data"]}
        assert names == {"student", engine.alias, engine.name}
    assert said[0] != said[1]


def test_a_draw_can_be_repeated_and_its_log_probabilities_are_those_of_the_trainer(
    served: tuple[VllmEngine, Student],
) -> None:
    engine, own = served
    first, again = generated(engine, own, temperature=1.0), generated(engine, own, temperature=1.0)
    assert [list(a.token_ids) for a in first] == [list(a.token_ids) for a in again]
    for prompt, answer in zip(prompts(own), first, strict=True):
        expected = score(own.model, [*prompt, *answer.token_ids]).logprobs[len(prompt) - 1 :]
        assert answer.logprobs == pytest.approx(expected, abs=TOLERANCE)


def test_log_probabilities_are_those_of_the_nucleus_as_in_this_process(served: tuple[VllmEngine, Student]) -> None:
    engine, own = served
    prompt, top_p = prompts(own)[0], 0.6

    async def drawn() -> list[Generation]:
        async with engine.connected():
            samplings = [Sampling(1, 1.0, top_p, Key(0, 0, "t", index)) for index in range(5)]
            return await asyncio.gather(*(engine.generate(prompt, sampling) for sampling in samplings))

    with torch.no_grad():
        logprobs = own.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    ordered = logprobs.exp().sort(descending=True).values
    mass = ordered[: int((ordered.cumsum(0) < top_p).sum()) + 1].sum()
    for answer in asyncio.run(drawn()):
        expected = logprobs[answer.token_ids[0]] - mass.log()
        assert answer.logprobs == pytest.approx([expected.item()], abs=TOLERANCE)


def test_given_tokens_are_scored_as_in_this_process(served: tuple[VllmEngine, Student]) -> None:
    engine, own = served
    ids = [token for prompt in prompts(own) for token in prompt]

    async def scored() -> Any:
        async with engine.connected():
            return await engine.score(ids, num_top=3)

    found, expected = asyncio.run(scored()), score(own.model, ids, num_top=3)
    assert found.logprobs == pytest.approx(expected.logprobs, abs=TOLERANCE)
    assert [value for row in found.top_logprobs for value in row] == pytest.approx(
        [value for row in expected.top_logprobs for value in row], abs=TOLERANCE
    )


def test_a_server_that_did_not_follow_is_noticed(served: tuple[VllmEngine, Student]) -> None:
    engine, own = served
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    trained(own.model, seed=9)
    with pytest.raises(EngineError, match=r"policy version 2 .* differ from the trainer's by .*probe_tolerance=0\.001"):
        engine.load_weights(2, own.model)
    own.model.load_state_dict(before)
    engine.load_weights(2, own.model)


def test_a_hundred_episodes_drift_nowhere_and_find_their_prefix_cached(
    served: tuple[VllmEngine, Student], tmp_path: Path
) -> None:
    engine, own = served
    collector = Collector(
        runner=Runner(
            world=WORLD,
            student=LanguagePolicy(engine=engine, chat=own.chat, max_new_tokens=8),
            teacher=ScriptedPolicy(),
            mixing=StudentOnly(),
            labeler=Labeler(),
            chat=own.chat,
            max_context_tokens=1024,
        ),
        store=Store(tmp_path, "run"),
        plan=ShuffledTasks(tasks=WORLD.tasks("train"), seed=0),
        concurrency=16,
        keeps=lambda round_index, reason: True,
    )
    before = num_hits(engine)
    episodes = collector.collect(0, num_episodes=100)
    assert not any(episode.stop_reason.is_infrastructure for episode in episodes)
    assert collector.store.manifest(0)["counts"]["rollout/num_branches"] == 0
    assert num_hits(engine) > before


def num_hits(engine: VllmEngine) -> float:
    """Return how many tokens of prompts the server has found computed."""
    hits = [line for line in ask(engine, "/metrics").splitlines() if line.startswith("vllm:prefix_cache_hits_total")]
    return float(hits[0].split()[-1])


def test_what_the_server_cannot_serve_is_refused_before_an_episode(
    served: tuple[VllmEngine, Student], tmp_path: Path
) -> None:
    engine, _ = served
    long, high = student(max_context_tokens=2048), student(lora=Lora(rank=64))
    with pytest.raises(ConfigError, match=r"reads 1024 tokens, but student\.max_context_tokens is 2048"):
        at(engine, long, tmp_path).load_weights(0, long.model)
    with pytest.raises(ConfigError, match=r"--max-lora-rank 64"):
        at(engine, high, tmp_path).load_weights(0, trained(high.model, seed=0))


def test_a_token_outside_the_vocabulary_is_an_error(served: tuple[VllmEngine, Student]) -> None:
    engine, _ = served

    async def asked() -> None:
        async with engine.connected():
            await engine.generate([5, 99999], Sampling(4, 0.0))

    with pytest.raises(EngineError, match="out of vocabulary"):
        asyncio.run(asked())


def test_a_whole_run_with_two_rounds(served: tuple[VllmEngine, Student], call: Call, tmp_path: Path) -> None:
    address = served[0].endpoints[0].address
    common = ("student.finetuning=lora", "engine=vllm", f"engine.addresses=[{address}]", "logger=csv")
    common += (f"engine.probe_tolerance={TOLERANCE}", "evaluation.tasks=10")

    def done(command: str, *more: str) -> Path:
        answer = call(command, *common, *more, f"hydra.run.dir={tmp_path}/{command}")
        assert answer.code == 0, answer.out + answer.err
        return tmp_path / command

    run = done("train", "rounds.num_rounds=2", "rounds.labels=[120,60]", "rounds.steps=[12,6]")
    rows = json.loads((run / "summary.json").read_text())["rounds"]
    assert [row["round"] for row in rows] == [0, 1]
    assert all(row["rollout/num_failed"] == row["rollout/num_branches"] == 0 for row in rows)
    assert (run / "student/adapter_model.safetensors").exists()
    found = json.loads((done("evaluate", f"student.init={run}") / "evaluation.json").read_text())
    assert found["eval/success_rate"] == rows[-1]["eval/success_rate"]
    few = ("rounds.num_rounds=1", "rounds.labels=20")
    episodes = Store.open(done("collect", f"student.init={run}", *few, *STUDENT_ACTS) / "rounds").read(0).episodes([0])
    assert {turn.actor for turn in episodes[0].turns} == {Actor.STUDENT}


@pytest.fixture(scope="module")
def served_full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VllmEngine, Student]]:
    """Return an engine whose server has all weights of a student, and could take them from GPU to GPU."""
    own = student(seed=3, finetuning="full")
    transfer = ("--weight-transfer-config", '{"backend": "ipc"}')
    folder = tmp_path_factory.mktemp("full")
    with started(own, folder, *transfer, VLLM_ALLOW_INSECURE_SERIALIZATION="1") as engine:
        yield engine, own


def test_full_weights_are_reloaded_from_disk(served_full: tuple[VllmEngine, Student]) -> None:
    engine, own = served_full
    before = generated(engine, own)
    engine.load_weights(1, trained(own.model, seed=4))
    after = generated(engine, own)
    assert [list(a.token_ids) for a in after] == [list(a.token_ids) for a in generated(in_process(own), own)]
    assert [list(a.token_ids) for a in after] != [list(a.token_ids) for a in before]
    assert {answer.policy_version for answer in after} == {1}


def test_a_server_is_ready_for_weights_from_gpu_to_gpu(served_full: tuple[VllmEngine, Student]) -> None:
    """Check what shows without a GPU: the server takes the argument, tells its size, and the two sides meet."""
    endpoint = Endpoint(address=served_full[0].endpoints[0].address, max_attempts=1)

    async def meet() -> None:
        async with endpoint.connected():
            await endpoint.post("/init_weight_transfer_engine", {"init_info": {"packed": True}})
            with pytest.raises(EngineError, match="init_info"):
                await endpoint.post("/init_weight_transfer_engine", {"init_info": {"unknown": True}})

    assert asyncio.run(endpoint.get("/get_world_size")) == {"world_size": 1}
    asyncio.run(meet())


def test_a_server_that_tells_log_probabilities_before_the_temperature_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs")
    with refused, started(student(), tmp_path, "--logprobs-mode", "raw_logprobs"):
        pass
