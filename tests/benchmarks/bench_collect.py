"""How well does the collector keep a server busy, and what does a turn cost it?

    python tests/benchmarks/bench_collect.py                        # about eight minutes
    python tests/benchmarks/bench_collect.py --clients bare teacher dagger --concurrency 16 64 256 1024
    python tests/benchmarks/bench_collect.py --clients verifiers mini --verifiers-python PATH --mini-python PATH
    python tests/benchmarks/bench_collect.py --clients dagger --concurrency 256 --profile dagger.prof

A stub answers every request after exactly one second. All episodes have 8 turns and begin at once, so 8 s are ideal.
The column `wanted` is the goal for the wall time over this ideal. CPU per turn is reported, and has no goal.

- `teacher`: the teacher acts, one request per turn.
- `dagger`: the student acts through the vLLM engine and the teacher labels each turn meanwhile, two requests per turn.
- `bare`: aiohttp alone sends the requests of `teacher`.
- `tokens`: the same, and two texts per turn become tokens, which no client that keeps token ids can leave out.
- `verifiers` (a `MultiTurnEnv`) and `mini` (the batch runner of mini-swe-agent with an environment that executes
  nothing): each needs an interpreter of its own, and one is made in a folder beside the temporary ones where none is
  given. They do not tokenise, and write only what their own runner writes.

`teacher` and `dagger` go through the real collector, runner, chat and store: they tokenise every turn, commit every
episode to disk, close the round and return its episodes. No client can connect to anything but 127.0.0.1. Each is
measured in its own process, after two turns of warming up.

- `played` is the wall time until the last episode is done, for ours with its commit.
- `closed` is the wall time until the call returns, for ours with the round's Parquet file, the removal of its episodes'
  files and the episodes read back.
- `stolen` is the share of a core that other processes had in the half second before. A virtual machine may count it as
  CPU time of the client: above 0.05 a row says more about the machine, and ours compares only with `bare`.

The script prints this table and a second one: what the chat costs in a turn (an answer of the teacher and the prompt of
the next turn), in milliseconds, at turns 8, 32 and 128, apart for tokens and for the template. The tokens should cost
the same at all of them; a template that may look back is rendered whole at each turn. `--clients` without a name prints
the second table alone. The last line is both as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NUM_TURNS = 8
LATENCY_S = 1.0
OBSERVATION_CHARS = 500
VOCABULARY = 8000
MODEL = "stub"
SAID = "The test fails in the parser, so look at it.\n```mswea_bash_command\nsed -n 1,40p src/parser.py\n```"
"""What the stub always says; the fence is the one that mini-swe-agent wants."""
WANTED = {16: 1.05, 64: 1.10, 256: 1.20, 1024: 1.30}
"""Wall time over the ideal, by the number of episodes at once."""
START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LOOKING_BACK = CHATML.replace("'<|im_start|>' + m.role", "('<|im_start|>' if loop.first else '<|im_start|>') + m.role")
TEMPLATES = {"each alone": CHATML, "looks back": LOOKING_BACK}
"""The same text; but in one of them a message may look at others, as in most templates with tools."""
PEERS = {"verifiers": "verifiers==0.3.1", "mini": "mini-swe-agent==2.4.6"}
"""The last `verifiers` that has a `MultiTurnEnv`: from 0.4 each model call goes through a process and a proxy."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a client is asked to do: so many episodes at once, against this address, with these texts."""

    address: str
    num_episodes: int
    num_turns: int
    folder: Path
    texts: Sequence[str]

    def text(self, episode_index: int, turn_index: int) -> str:
        """Return what an env says."""
        return self.texts[(7 * episode_index + turn_index) % len(self.texts)]


class Clock:
    """Wall time and CPU time of this process since a begin; a lap is the last moment at which an episode was done."""

    def __init__(self) -> None:
        self.lap_at = self.begin = (time.perf_counter(), time.process_time())

    def lap(self, *args: Any) -> None:
        """Note that an episode is done."""
        self.lap_at = (time.perf_counter(), time.process_time())

    def times(self) -> dict[str, float]:
        """Return the times until the last lap and until now."""
        end = (time.perf_counter(), time.process_time())
        last = self.lap_at if self.lap_at != self.begin else end
        wall_s, cpu_s = (end[i] - self.begin[i] for i in range(2))
        return {"played_s": last[0] - self.begin[0], "wall_s": wall_s, "cpu_s": cpu_s, "close_cpu_s": end[1] - last[1]}


Client = Callable[[Work], dict[str, float]]
"""Does the work and returns its times, without what comes once."""


# Ours ----------------------------------------------------------------------------------------------------------------


class Reading:
    """An env that shows another piece of source at every turn, for ever."""

    def __init__(self, work: Work, episode_index: int) -> None:
        self.work, self.episode_index, self.turn_index = work, episode_index, 0

    async def reset(self) -> Sequence[Any]:
        return [self._message()]

    async def step(self, action: Any) -> Any:
        from dagger_exp.types import StepResult

        self.turn_index += 1
        return StepResult(self._message())

    async def close(self) -> None: ...

    def _message(self) -> Any:
        from dagger_exp.types import Message

        return Message("user", self.work.text(self.episode_index, self.turn_index))


class Library:
    """A world of such envs."""

    def __init__(self, work: Work) -> None:
        self.work, self.max_turns = work, work.num_turns

    def tasks(self, split: str) -> Sequence[Any]:
        from dagger_exp.types import Task

        return [Task(f"{split}-{index}", split, {"index": index}) for index in range(self.work.num_episodes)]

    def make(self, task: Any) -> Reading:
        return Reading(self.work, task.data["index"])

    def vocabulary(self) -> Sequence[str]:
        return ()

    def connected(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()


def ours(work: Work, *, is_dagger: bool) -> dict[str, float]:
    """Collect a round, from its begin to its episodes in memory."""
    from dagger_exp.chat.conversation import Chat
    from dagger_exp.engines.endpoint import Endpoint
    from dagger_exp.engines.vllm import VllmEngine
    from dagger_exp.engines.vllm_server import VllmServer
    from dagger_exp.policies.llm import LanguagePolicy
    from dagger_exp.policies.mixture import StudentOnly, TeacherOnly
    from dagger_exp.policies.served import ServedPolicy
    from dagger_exp.rollout.collector import Collector
    from dagger_exp.rollout.labeler import Labeler
    from dagger_exp.rollout.plan import ShuffledTasks
    from dagger_exp.rollout.runner import Runner
    from dagger_exp.store.store import Store

    chat, world = Chat(read_tokenizer(work.folder)), Library(work)
    unloaded: Any = SimpleNamespace(lora_rank=None)  # generating needs no student in this process
    engine = VllmEngine(
        student=unloaded, end_id=chat.end_id, folder=work.folder, server=VllmServer(), addresses=[work.address]
    )
    engine.version = 0
    runner = Runner(
        world=world,
        student=LanguagePolicy(engine=engine, chat=chat, max_new_tokens=256),
        teacher=ServedPolicy(endpoint=Endpoint(address=work.address), model=MODEL),
        mixing=StudentOnly() if is_dagger else TeacherOnly(),
        labeler=Labeler(),
        chat=chat,
        max_context_tokens=100_000,
        max_observation_chars=10_000,
        max_attempts=2,
    )
    with tempfile.TemporaryDirectory(dir=work.folder) as temporary:
        collector = Collector(
            runner=runner,
            store=Store(Path(temporary) / "rounds", "benchmark"),
            plan=ShuffledTasks(tasks=world.tasks("train"), seed=0),
            concurrency=work.num_episodes,
            keeps=lambda round_index, stop_reason: True,
        )
        clock = Clock()
        episodes = collector.collect(0, num_episodes=work.num_episodes, on_episode=clock.lap)
        times = clock.times()
    assert all(len(episode.turns) == episode.num_labels == work.num_turns for episode in episodes), episodes[0].error
    return times


# The others ----------------------------------------------------------------------------------------------------------


def bare(work: Work, *, encode: Callable[[str], Any] = lambda text: None) -> dict[str, float]:
    """Send the same requests with aiohttp alone, and read their answers."""
    import aiohttp

    async def episode(session: aiohttp.ClientSession, index: int) -> None:
        messages = [{"role": "user", "content": work.text(index, 0)}]
        for turn_index in range(work.num_turns):
            body = {"model": MODEL, "messages": messages, "max_tokens": 1024, "temperature": 0.0, "top_p": 1.0}
            async with session.post(f"{work.address}/v1/chat/completions", json=body) as answer:
                said = (await answer.json())["choices"][0]["message"]["content"]
            messages.append({"role": "assistant", "content": said})
            messages.append({"role": "user", "content": work.text(index, turn_index + 1)})
            encode(said)
            encode(f"{END}\n{START}user\n{messages[-1]['content']}{END}\n{START}assistant\n")

    async def play() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(episode(session, index) for index in range(work.num_episodes)))

    clock = Clock()
    asyncio.run(play())
    return clock.times()


def tokens(work: Work) -> dict[str, float]:
    """Do the same and tokenise each answer and what the next prompt adds, with the same tokenizer as the collector."""
    return bare(work, encode=read_tokenizer(work.folder).encode)


def verifiers(work: Work) -> dict[str, float]:
    """Evaluate a `MultiTurnEnv`, as its documentation says."""
    import verifiers.legacy as vf  # pyright: ignore[reportMissingImports]
    from datasets import Dataset
    from verifiers.legacy.types import ClientConfig  # pyright: ignore[reportMissingImports]

    class Env(vf.MultiTurnEnv):
        async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
            return [{"role": "user", "content": work.text(state["example_id"], len(state["trajectory"]))}]

    rows = [[{"role": "user", "content": work.text(index, 0)}] for index in range(work.num_episodes)]
    data = Dataset.from_dict({"prompt": rows, "answer": [""] * len(rows), "example_id": list(range(len(rows)))})
    env = Env(max_turns=work.num_turns, eval_dataset=data, rubric=vf.Rubric())
    config = ClientConfig(api_base_url=f"{work.address}/v1", api_key_var="STUB_KEY")
    clock = Clock()
    output = asyncio.run(
        env.evaluate(client=config, model=MODEL, max_concurrent=work.num_episodes, on_start=ignore, on_progress=ignore)
    )
    times = clock.times()
    assert [row["error"] for row in output["outputs"]] == [None] * work.num_episodes, output["outputs"][0]
    return times


def mini(work: Work) -> dict[str, float]:
    """Run the batch runner for SWE-bench from where it has read its instances; one thread per episode."""
    from minisweagent.run.benchmarks import swebench  # pyright: ignore[reportMissingImports]

    folder = Path(tempfile.mkdtemp(dir=work.folder))
    rows = [{"instance_id": f"i{i}", "problem_statement": work.text(i, 0)} for i in range(work.num_episodes)]
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    kwargs = {"api_base": f"{work.address}/v1", "api_key": "none", "max_tokens": 1024, "temperature": 0.0}
    agent = {"system_template": "Repair it.", "instance_template": "{{task}}", "cost_limit": 0.0}
    model = {"model_name": f"openai/{MODEL}", "cost_tracking": "ignore_errors", "model_kwargs": kwargs}
    config = {"agent": agent | {"step_limit": work.num_turns}, "model": model | {"model_class": "litellm_textbased"}}
    (folder / "config.yaml").write_text(json.dumps(config))
    clocks, progress = [], swebench.RunBatchProgressManager

    def manager(*args: Any) -> Any:
        clocks.append(Clock())
        return progress(*args)

    swebench.RunBatchProgressManager = manager
    Executing.work = work
    swebench.main(
        subset=str(folder / "data"),
        split="train",
        slice_spec="",
        filter_spec="",
        shuffle=False,
        output=str(folder / "out"),
        workers=work.num_episodes,
        model=None,
        model_class=None,
        redo_existing=False,
        config_spec=[str(folder / "config.yaml")],
        environment_class="__main__.Executing",
    )
    swebench.RunBatchProgressManager = progress
    return clocks[0].times()


class Executing:
    """An environment of mini-swe-agent that executes nothing."""

    work: Work
    count = 0

    def __init__(self, **kwargs: Any) -> None:
        self.config, self.turn_index = kwargs, 0
        type(self).count += 1
        self.episode_index = self.count

    def execute(self, action: Mapping[str, Any], cwd: str = "") -> dict[str, Any]:
        self.turn_index += 1
        output = self.work.text(self.episode_index, self.turn_index)
        return {"output": output, "returncode": 0, "exception_info": ""}

    def get_template_vars(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    def serialize(self) -> dict[str, Any]:
        return {}


def ignore(*args: Any) -> None:
    """Show no progress."""


CLIENTS: dict[str, Client] = {
    "bare": bare,
    "tokens": tokens,
    "teacher": lambda work: ours(work, is_dagger=False),
    "dagger": lambda work: ours(work, is_dagger=True),
    "verifiers": verifiers,
    "mini": mini,
}


# Measuring -----------------------------------------------------------------------------------------------------------


def be_client(name: str, work: Work, profile: Path | None) -> None:
    """Measure one client in this process; print what was measured."""
    sys.addaudithook(_stay_here)
    warm = Work(address=work.address, num_episodes=2, num_turns=2, folder=work.folder, texts=work.texts)
    CLIENTS[name](warm)
    ask(f"{work.address}/stats")
    with cProfile.Profile() if profile else nullcontext() as profiler:
        times = CLIENTS[name](work)
    if profiler and profile:
        profiler.dump_stats(profile)
    packages = "aiohttp openai litellm verifiers mini-swe-agent transformers".split()
    versions = {package: version for package in packages if (version := _version(package))}
    print("\n" + json.dumps({"times": times, "versions": versions}), flush=True)  # a peer may have begun a line


def _stay_here(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse every connection that leaves this machine."""
    if event == "socket.connect" and arguments[1][0] not in ("127.0.0.1", "::1", "localhost"):
        raise PermissionError(f"a benchmark connects to nothing but its stub, not to {arguments[1]}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure(name: str, python: str, address: str, num_episodes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one client with so many episodes."""
    command = [python, __file__, "--client", name, "--address", address, "--concurrency", str(num_episodes)]
    command += ["--folder", str(options.folder), "--turns", str(options.turns)]
    command += ["--profile", str(options.profile)] if options.profile else []
    here = str(options.folder)
    quiet = {"HF_HOME": here, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    quiet |= {"MSWEA_GLOBAL_CONFIG_DIR": here, "MSWEA_SILENT_STARTUP": "1", "STUB_KEY": "none", "HOME": here}
    quiet |= {"TOKENIZERS_PARALLELISM": "false"}
    before, stolen = ask(f"{address}/stats")["cpu_s"], stolen_share()
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | quiet, timeout=600, check=False, cwd=here
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name} cannot be run: {done.stderr[-2000:]}")
    figures, stats = json.loads(done.stdout.splitlines()[-1]), ask(f"{address}/stats")
    times = figures["times"]
    num_turns, ideal_s = num_episodes * options.turns, options.turns * options.latency
    return {
        "client": name,
        "episodes": num_episodes,
        "played_s": round(times["played_s"], 2),
        "closed_s": round(times["wall_s"], 2),
        "played_over_ideal": round(times["played_s"] / ideal_s, 3),
        "closed_over_ideal": round(times["wall_s"] / ideal_s, 3),
        "wanted": WANTED.get(num_episodes, "-"),
        "cpu_ms_per_turn": round(1000 * times["cpu_s"] / num_turns, 3),
        "of_it_closing": round(1000 * times["close_cpu_s"] / num_turns, 3),
        "requests_per_turn": round(sum(stats["requests"].values()) / num_turns, 3),
        "most_waiting": stats["most_waiting"],
        "stub_cpu_s": round(stats["cpu_s"] - before, 2),
        "stolen": round(stolen, 2),
        "versions": figures["versions"],
    }


def stolen_share(seconds: float = 0.5) -> float:
    """Return the share of a core that is given to others while this asks for all of it."""
    begin = now = time.perf_counter()
    stolen_s = 0.0
    while now - begin < seconds:
        before, now = now, time.perf_counter()
        stolen_s += now - before if now - before > 1e-4 else 0.0  # a pass takes a thousandth of it
    return stolen_s / (now - begin)


def ask(url: str) -> Any:
    """Return the JSON at an address of this machine."""
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


@contextmanager
def stub(options: argparse.Namespace) -> Iterator[str]:
    """Give the address of a stub that runs in a process of its own."""
    message = {"role": "assistant", "content": SAID}
    usage = {"prompt_tokens": 500, "completion_tokens": 30, "total_tokens": 530}
    chosen = {"index": 0, "finish_reason": "stop", "logprobs": None}
    head = {"id": "answer-1", "created": 1, "model": MODEL, "usage": usage}
    tokenizer = read_tokenizer(options.folder)
    ids = [*tokenizer.encode(SAID, add_special_tokens=False), tokenizer.eos_token_id]
    logprobs = {"token_logprobs": [-0.25 - 0.001 * place for place in range(len(ids))]}
    answers = {
        "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]},
        "/v1/chat/completions": head | {"object": "chat.completion", "choices": [chosen | {"message": message}]},
        "/v1/completions": head | {"choices": [chosen | {"text": SAID, "token_ids": ids, "logprobs": logprobs}]},
    }
    path = options.folder / "answers.json"
    path.write_text(json.dumps(answers))
    command = [sys.executable, str(Path(__file__).with_name("stub_server.py")), "--answers", str(path)]
    process = subprocess.Popen(
        [*command, "--latency", str(options.latency)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.communicate(timeout=20)  # closes its standard input, which ends it


# Tokenising ----------------------------------------------------------------------------------------------------------


def make_texts() -> list[str]:
    """Return pieces of the standard library's source, as long as an observation."""
    folder, coins = Path(sysconfig.get_path("stdlib")), random.Random(0)
    source = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.py")))
    begins = [coins.randrange(len(source) - OBSERVATION_CHARS) for _ in range(1000)]
    return [source[begin : begin + OBSERVATION_CHARS] for begin in begins]


def train_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE tokenizer on the standard library's source and save it with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer: Any = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[START, END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train([str(path) for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))], trainer)
    backend.save(str(folder / "tokenizer.json"))


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer that was trained."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=END, additional_special_tokens=[START]
    )
    fast.chat_template = CHATML
    return fast


class Timed:
    """A tokenizer whose time is counted, apart for rendering and for tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.render_s, self.token_s = tokenizer, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def apply_chat_template(self, *args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        result = self.tokenizer.apply_chat_template(*args, **options)
        self.render_s += time.perf_counter() - begin
        return result

    def encode(self, *args: Any, **options: Any) -> Any:
        return self._timed(self.tokenizer.encode, *args, **options)

    def decode(self, *args: Any, **options: Any) -> Any:
        return self._timed(self.tokenizer.decode, *args, **options)

    def _timed(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function, and count its time as that of tokens."""
        begin = time.perf_counter()
        result = function(*args, **options)
        self.token_s += time.perf_counter() - begin
        return result


def measure_chat(folder: Path, texts: Sequence[str], template: str, num_repeats: int = 9) -> list[dict[str, Any]]:
    """Return what one turn costs: an answer of the teacher, and the prompt that the next observation makes."""
    from dagger_exp.chat.conversation import Chat
    from dagger_exp.types import Message

    wanted = (8, 32, 128)
    times: dict[int, list[tuple[float, float, float]]] = {turn: [] for turn in wanted}
    timed: Any = Timed(read_tokenizer(folder))
    timed.tokenizer.chat_template = TEMPLATES[template]
    chat, said = Chat(timed), Message("assistant", SAID)
    for repeat in range(num_repeats):
        messages = [Message("user", texts[repeat])]
        prompt = chat.open(messages)
        for turn_index in range(1, max(wanted) + 2):
            timed.render_s = timed.token_s = 0.0
            begin = time.perf_counter()
            ids = chat.response_ids(said, prompt)
            messages += [said, Message("user", texts[(repeat + turn_index) % len(texts)])]
            prompt = chat.extend(prompt, ids, messages)
            all_s = time.perf_counter() - begin
            assert not prompt.starts_branch
            for turn in wanted:
                if abs(turn - turn_index) <= 1:  # one turn alone is a matter of chance
                    times[turn].append((timed.token_s, timed.render_s, all_s))
    rows = []
    for turn in wanted:
        tokens, render, whole = (1000 * statistics.median(column) for column in zip(*times[turn], strict=True))
        times_ms = {"tokens_ms": tokens, "render_ms": render, "all_ms": whole}
        rows.append({"template": template, "turn": turn} | {name: round(ms, 3) for name, ms in times_ms.items()})
    return rows


# The script ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure the clients one after the other."""
    options = _options()
    if options.client:
        texts = json.loads((options.folder / "texts.json").read_text())
        sizes = {"num_episodes": options.concurrency[0], "num_turns": options.turns}
        be_client(
            options.client, Work(address=options.address, folder=options.folder, texts=texts, **sizes), options.profile
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = Path(temporary)
        texts = make_texts()
        (options.folder / "texts.json").write_text(json.dumps(texts))
        train_tokenizer(options.folder)
        figures = measure_clients(options) if options.clients else []
        chat = [row for template in TEMPLATES for row in measure_chat(options.folder, texts, template)]
    print_table(figures)
    print_table(chat)
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(json.dumps({"collect": figures, "chat": chat, "machine": machine}))


def measure_clients(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the figures of all clients; one that cannot be run is named and left out."""
    figures = []
    with stub(options) as address:
        for name in options.clients:
            try:
                python = interpreter(name, options)
                for num_episodes in [size for size in options.concurrency for _ in range(options.repeats)]:
                    figures.append(measure(name, python, address, num_episodes, options))
                    print(json.dumps(figures[-1]), file=sys.stderr)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
    return figures


def interpreter(name: str, options: argparse.Namespace) -> str:
    """Return the interpreter of a client; that of a peer is made where none is given."""
    if name not in PEERS:
        return sys.executable
    if given := {"verifiers": options.verifiers_python, "mini": options.mini_python}[name]:
        return given
    folder = Path(tempfile.gettempdir()) / f"bench_collect_{PEERS[name]}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PEERS[name]], check=True)
        (folder / "complete").touch()
    return str(python)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    if not rows:
        return
    names = [name for name in rows[0] if name != "versions"]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
    print()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="*", choices=list(CLIENTS), default=list(CLIENTS))
    parser.add_argument("--concurrency", nargs="+", type=int, default=list(WANTED), help="episodes at once")
    parser.add_argument("--turns", type=int, default=NUM_TURNS)
    parser.add_argument("--latency", type=float, default=LATENCY_S, help="of the stub, in seconds")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--verifiers-python", help="an interpreter that has verifiers")
    parser.add_argument("--mini-python", help="an interpreter that has mini-swe-agent")
    parser.add_argument("--profile", type=Path, help="writes a profile of the last client")
    for name, kind in {"--client": str, "--address": str, "--folder": Path}.items():
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
