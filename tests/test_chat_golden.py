"""Which tokens are trained: episodes of three turns with chat templates of the shapes in use, written out by hand.

Each episode is played by the runner and grown into trees: the student acts, the teacher acts, the student acts and the
teacher would have done something else. What is trained is read back from the weights of the trees, as text.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dagger_exp.chat.conversation import Chat
from dagger_exp.data.batches import make_batch
from dagger_exp.data.prefix_tree import Row, grow
from dagger_exp.data.selection import label_rows
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.errors import ConfigError, DataError, LabelError
from dagger_exp.policies.llm import LanguagePolicy, ModelTeacher
from dagger_exp.policies.mixture import StudentOnly
from dagger_exp.protocols import Env, Generation, Sampling
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.runner import Runner
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.types import (
    Actor,
    Choice,
    Episode,
    Example,
    Key,
    Message,
    Response,
    State,
    StepResult,
    StopReason,
    Task,
    ToolCall,
)

MODEL_FOLDERS = "DAGGER_EXP_MODEL_FOLDERS"
TOOL = {"type": "function", "function": {"name": "edit"}}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|bos|>", "<|head|>", "<|/head|>", "<|eot|>"]
WORDS = r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+| ?\p{L}+|\s+(?!\S)|\s+"
"""A line break never depends on what follows it; else the tokens of a prompt would depend on its response."""
CORPUS = ["open file\n\n", "assistant\nuser\n", "edit edit", '{"name": "edit", "arguments": {"file": "a"}}\n'] * 20


def chatml(assistant: str, *, head: str = "", generation: str = "") -> str:
    """Return a template of Qwen's shape, with what is written before the messages, in and before those of the agent."""
    return (
        head
        + "{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}"
        + assistant
        + r"""{{- '<|im_end|>\n' }}
        {%- elif m.role == 'tool' %}
            {%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
            {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
            {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
        {%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}
        {%- endfor %}
        {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"""
        + generation
        + "{%- endif %}"
    )


LIST_TOOLS = r"{%- for tool in tools or [] %}{{- tool | tojson + '\n' }}{%- endfor %}"
SHOW_TOOLS = r"{%- if tools %}{{- '<|im_start|>system\n' }}" + LIST_TOOLS + r"{{- '<|im_end|>\n' }}{%- endif %}"
LAST_QUERY = r"""{%- set query = namespace(place=-1) %}
    {%- for m in messages %}{%- if m.role == 'user' and not m.content.startswith('<tool_response>') %}
    {%- set query.place = loop.index0 %}{%- endif %}{%- endfor %}"""
JSON_CALLS = r"""{%- for call in m.tool_calls or [] %}{%- if answer or not loop.first %}{{- '\n' }}{%- endif %}
    {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
    {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
    {{- '}\n</tool_call>' }}{%- endfor %}"""
XML_CALLS = r"""{%- for call in m.tool_calls or [] %}{%- if answer or not loop.first %}{{- '\n' }}{%- endif %}
    {{- '<tool_call>\n<function=' + call.function.name + '>\n' }}
    {%- for key, value in call.function.arguments | items %}
    {{- '<parameter=' + key + '>\n' + value | string + '\n</parameter>\n' }}{%- endfor %}
    {{- '</function>\n</tool_call>' }}{%- endfor %}"""
SAYS = "{%- set answer = m.content %}{{- answer }}"
EMPTY = "<think>\n\n</think>\n\n"
PLAIN = chatml(SAYS)
MARKED = chatml("{%- generation %}{{- m.content }}{%- endgeneration %}")
THINKS_ALWAYS = chatml(
    r"{%- if m.reasoning_content %}{{- '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{%- endif %}" + SAYS
)
THINKS_SINCE_QUERY = chatml(
    r"""{%- set parts = m.content.split('</think>') %}{%- set answer = parts[-1].lstrip('\n') %}
    {%- set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}
    {%- set thought = m.reasoning_content or thought %}
    {%- if loop.index0 > query.place and (loop.last or thought) %}
    {{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{{- answer }}"""
    + JSON_CALLS,
    head=SHOW_TOOLS + LAST_QUERY,
    generation=r"{%- if enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}",
)
OPENS_THOUGHTS = THINKS_SINCE_QUERY.replace("{%- if enable_thinking is false %}", "{{- '<think>\\n' }}{%- if false %}")
JSON_TOOLS = chatml(
    SAYS + JSON_CALLS,
    head=r"{{- '<|im_start|>system\nYou repair.\n' }}" + LIST_TOOLS + r"{{- '<|im_end|>\n' }}",
)
XML_TOOLS = chatml(SAYS + XML_CALLS, head=SHOW_TOOLS)
HEADED = r"""{{- bos_token }}
    {%- if tools %}{{- '<|head|>system<|/head|>\n\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
    {{- '<|eot|>' }}{%- endif %}
    {%- for m in messages %}
    {%- if m.tool_calls %}
        {%- if m.tool_calls | length > 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|head|>assistant<|/head|>\n\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + '}<|eot|>' }}
    {%- else %}
        {{- '<|head|>' + ('ipython' if m.role == 'tool' else m.role) + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}
    {%- endif %}{%- endfor %}
    {%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\n\n' }}{%- endif %}"""


@lru_cache(None)
def tokenizer_of(template: str, end: str = "<|im_end|>", *, eats_space: bool = False) -> Any:
    """Return a byte-level BPE tokenizer; of its special tokens only two have a name, as in Llama's.

    Args:
        template: of its chat.
        end: its `eos_token`.
        eats_space: whether that token takes the white space after it, as in Phi's.
    """
    backend: Any = Tokenizer(models.BPE())
    words: Any = pre_tokenizers.Split(Regex(WORDS), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, rstrip=eats_space and text == end) for text in SPECIAL]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer: Any = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=special[SPECIAL.index(end)], bos_token=special[SPECIAL.index("<|bos|>")]
    )
    fast.chat_template = template
    return fast


def user(content: str) -> Message:
    return Message("user", content)


def tool(content: str) -> Message:
    return Message("tool", content)


def says(content: str, *files: Any, reasoning: str = "") -> Message:
    """Return a message of the agent, with a call of `edit` for each file."""
    calls = tuple(ToolCall("edit", f'{{"file": "{file}"}}') for file in files)
    return Message("assistant", content, reasoning, calls)


@dataclass(frozen=True, kw_only=True)
class Case:
    """An episode and what must come of it; `last` is the whole prompt of the third turn."""

    template: str
    executed: tuple[str, Message, str]
    observed: tuple[Message, Message]
    labels: tuple[Message, Message]
    trained: tuple[str, str, str]
    last: str
    branches: tuple[bool, bool, bool] = (True, False, False)
    tools: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    end: str = "<|im_end|>"
    opening: tuple[Message, ...] = (Message("user", "go"),)

    def conversation(self) -> list[Message]:
        """Return all messages before the third response."""
        first, second, _ = self.executed
        return [*self.opening, says(first), self.observed[0], second, self.observed[1]]


JSON_A, JSON_B, JSON_C = (
    f'<tool_call>\n{{"name": "edit", "arguments": {{"file": "{file}"}}}}\n</tool_call>' for file in "abc"
)
XML_A, XML_B, XML_C = (
    f"<tool_call>\n<function=edit>\n<parameter=file>\n{file}\n</parameter>\n</function>\n</tool_call>" for file in "abc"
)
TEXT_ONLY: dict[str, Any] = {
    "executed": ("open a", says("open b"), "edit a"),
    "observed": (user("one"), user("two")),
    "labels": (says("open a"), says("edit b")),
    "trained": ("open a<|im_end|>", "open b<|im_end|>", "edit b<|im_end|>"),
}
TEXT_LAST = (
    "<|im_start|>user\ngo<|im_end|>\n"
    "<|im_start|>assistant\nopen a<|im_end|>\n"
    "<|im_start|>user\none<|im_end|>\n"
    "<|im_start|>assistant\nopen b<|im_end|>\n"
    "<|im_start|>user\ntwo<|im_end|>\n"
    "<|im_start|>assistant\n"
)
CASES: dict[str, Case] = {
    "no marks of generation": Case(template=PLAIN, last=TEXT_LAST, **TEXT_ONLY),
    "marks of generation": Case(template=MARKED, last=TEXT_LAST, **TEXT_ONLY),
    "thinking is kept": Case(
        template=THINKS_ALWAYS,
        executed=(
            "<think>\nhm\n</think>\n\nopen a",
            says("open b", reasoning="so"),
            "<think>\nno\n</think>\n\nedit a",
        ),
        observed=(user("one"), user("two")),
        labels=(says("open a", reasoning="hm"), says("edit b", reasoning="yes")),
        trained=(
            "<think>\nhm\n</think>\n\nopen a<|im_end|>",
            "<think>\nso\n</think>\n\nopen b<|im_end|>",
            "<think>\nyes\n</think>\n\nedit b<|im_end|>",
        ),
        last="<|im_start|>user\ngo<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\nopen a<|im_end|>\n"
        "<|im_start|>user\none<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nso\n</think>\n\nopen b<|im_end|>\n"
        "<|im_start|>user\ntwo<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "thinking of earlier queries is dropped": Case(
        template=THINKS_SINCE_QUERY,
        executed=("<think>\nhm\n</think>\n\nopen a", says("open b"), "edit a"),
        observed=(user("one"), user("two")),
        labels=(says("open a", reasoning="hm"), says("edit b", reasoning="yes")),
        trained=(
            "<think>\nhm\n</think>\n\nopen a<|im_end|>",
            "open b<|im_end|>",
            "<think>\nyes\n</think>\n\nedit b<|im_end|>",
        ),
        last=TEXT_LAST,
        branches=(True, True, False),
    ),
    "thinking since the last query is kept": Case(
        template=THINKS_SINCE_QUERY,
        executed=("<think>\nhm\n</think>\n\n" + JSON_A, says("", "b"), "edit a"),
        observed=(tool("one"), tool("two")),
        labels=(says("", "a", reasoning="hm"), says("Now.", "c", reasoning="yes")),
        trained=(
            "<think>\nhm\n</think>\n\n" + JSON_A + "<|im_end|>",
            JSON_B + "<|im_end|>",
            "<think>\nyes\n</think>\n\nNow.\n" + JSON_C + "<|im_end|>",
        ),
        last='<|im_start|>system\n{"type": "function", "function": {"name": "edit"}}\n<|im_end|>\n'
        "<|im_start|>user\ngo<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\n" + JSON_A + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\none\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n" + JSON_B + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n",
        tools=[TOOL],
    ),
    "thinking is switched off, and an empty thought opens every answer": Case(
        template=THINKS_SINCE_QUERY,
        executed=("open a", says("", "b"), "edit a"),
        observed=(user("one"), user("two")),
        labels=(says("open a"), says("", "c")),
        trained=("open a<|im_end|>", JSON_B + "<|im_end|>", JSON_C + "<|im_end|>"),
        last="<|im_start|>user\ngo<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nopen a<|im_end|>\n"
        "<|im_start|>user\none<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n" + JSON_B + "<|im_end|>\n"
        "<|im_start|>user\ntwo<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        options={"enable_thinking": False},
    ),
    # Where the prompt opens a thought, a call without reasoning has to close it.
    "every prompt opens a thought": Case(
        template=OPENS_THOUGHTS,
        executed=("hm\n</think>\n\n" + JSON_A, says("", "b"), "no\n</think>\n\nedit a"),
        observed=(tool("one"), tool("two")),
        labels=(says("", "a", reasoning="hm"), says("edit b", reasoning="yes")),
        trained=(
            "hm\n</think>\n\n" + JSON_A + "<|im_end|>",
            "\n</think>\n\n" + JSON_B + "<|im_end|>",
            "yes\n</think>\n\nedit b<|im_end|>",
        ),
        last='<|im_start|>system\n{"type": "function", "function": {"name": "edit"}}\n<|im_end|>\n'
        "<|im_start|>user\ngo<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\n" + JSON_A + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\none\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n" + JSON_B + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n",
        tools=[TOOL],
    ),
    "calls are JSON, and a system message is there by itself": Case(
        template=JSON_TOOLS,
        executed=("Look.\n" + JSON_A, says("", "b"), "edit a"),
        observed=(tool("one"), tool("two")),
        labels=(says("Look.", "a"), says("Both.", "b", "c")),
        trained=(
            "Look.\n" + JSON_A + "<|im_end|>",
            JSON_B + "<|im_end|>",
            "Both.\n" + JSON_B + "\n" + JSON_C + "<|im_end|>",
        ),
        last='<|im_start|>system\nYou repair.\n{"type": "function", "function": {"name": "edit"}}\n<|im_end|>\n'
        "<|im_start|>user\ngo<|im_end|>\n"
        "<|im_start|>assistant\nLook.\n" + JSON_A + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\none\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n" + JSON_B + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n",
        tools=[TOOL],
    ),
    "calls are XML": Case(
        template=XML_TOOLS,
        executed=(XML_A, says("Next.", "b"), "edit a"),
        observed=(tool("one"), tool("two")),
        labels=(says("", "a"), says("", "c")),
        trained=(XML_A + "<|im_end|>", "Next.\n" + XML_B + "<|im_end|>", XML_C + "<|im_end|>"),
        last='<|im_start|>system\n{"type": "function", "function": {"name": "edit"}}\n<|im_end|>\n'
        "<|im_start|>user\ngo<|im_end|>\n"
        "<|im_start|>assistant\n" + XML_A + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\none\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nNext.\n" + XML_B + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n",
        tools=[TOOL],
    ),
    "a text begins with a token and tools have a role, and the text beside a call is never written": Case(
        template=HEADED,
        executed=("open a", says("dropped", "b"), "edit a"),
        observed=(tool("one"), tool("two")),
        labels=(says("open a"), says("", "c")),
        trained=(
            "open a<|eot|>",
            '{"name": "edit", "parameters": {"file": "b"}}<|eot|>',
            '{"name": "edit", "parameters": {"file": "c"}}<|eot|>',
        ),
        last='<|bos|><|head|>system<|/head|>\n\n{"type": "function", "function": {"name": "edit"}}<|eot|>'
        "<|head|>user<|/head|>\n\ngo<|eot|>"
        "<|head|>assistant<|/head|>\n\nopen a<|eot|>"
        "<|head|>ipython<|/head|>\n\none<|eot|>"
        '<|head|>assistant<|/head|>\n\n{"name": "edit", "parameters": {"file": "b"}}<|eot|>'
        "<|head|>ipython<|/head|>\n\ntwo<|eot|>"
        "<|head|>assistant<|/head|>\n\n",
        tools=[TOOL],
        end="<|eot|>",
    ),
    # As of base models, whose tokenizer ends a text and whose template ends a message.
    "the tokenizer's end is not the template's": Case(template=PLAIN, last=TEXT_LAST, end="<|endoftext|>", **TEXT_ONLY),
}


@dataclass
class Stage:
    """World, env and teacher of the test: says what is written in a case."""

    case: Case
    max_turns: int = 3
    id: str = "stage"
    reads_env: bool = False
    address: str = ""
    num_steps: int = 0

    def make(self, task: Task) -> Env:
        return cast(Env, self)

    async def reset(self) -> list[Message]:
        return list(self.case.opening)

    async def act(self, state: State, env: Env) -> Response:
        label, other = self.case.labels
        return Response((label, self.case.executed[1], other)[state.key.turn_index])

    async def step(self, action: Message) -> StepResult:
        self.num_steps += 1
        stop_reason = StopReason.SOLVED if self.num_steps == 3 else None
        return StepResult((*self.case.observed, user("done"))[self.num_steps - 1], stop_reason=stop_reason)

    async def close(self) -> None:
        pass


class Reciting(ScriptedEngine):
    """The student: says what is written in a case, token by token of its own choice."""

    def __init__(self, chat: Chat, case: Case) -> None:
        super().__init__(end_id=chat.end_id)
        self.chat, self.case = chat, case

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        assert sampling.key is not None
        said = self.case.executed[sampling.key.turn_index]
        assert isinstance(said, str)
        ids = [*self.chat.encode(said), self.chat.end_id]
        return Generation(ids, [0.0] * len(ids), "stop", 0)


@dataclass(frozen=True)
class InTurns(StudentOnly):
    """Student, teacher, student."""

    def choose(self, key: Key) -> Choice:
        return Choice(Actor.TEACHER if key.turn_index == 1 else Actor.STUDENT)


def play(case: Case, chat: Chat, teacher: Any = None) -> Episode:
    stage: Any = Stage(case)
    runner = Runner(
        world=stage,
        student=LanguagePolicy(engine=Reciting(chat, case), chat=chat, max_new_tokens=100),
        teacher=teacher or stage,
        mixing=InTurns(),
        labeler=Labeler(),
        chat=chat,
        max_context_tokens=10_000,
    )
    episode = asyncio.run(runner.run(Task("t", "train", {}), Key(0, 0, "t", 0)))
    assert not episode.error
    return episode


def decoded(chat: Chat, ids: Sequence[int]) -> str:
    return chat.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def encoded(chat: Chat, messages: Sequence[Message]) -> list[int]:
    """Return the whole conversation rendered at once, not by the code under test."""
    rows = []
    for message in messages:
        calls = [{"function": {"name": c.name, "arguments": json.loads(c.arguments)}} for c in message.tool_calls]
        row: dict[str, Any] = {"role": message.role, "content": message.content, "tool_calls": calls or None}
        rows.append({**row, "reasoning_content": message.reasoning})
    return chat.tokenizer.apply_chat_template(
        rows, tokenize=True, add_generation_prompt=True, return_dict=False, **chat.template.options
    )


def spans(chat: Chat, tree: Example) -> list[str]:
    """Return the texts that have weights in a tree, each from its first token to its last."""
    trained = np.asarray(tree.ce_weight) > 0
    ids: dict[int, list[int]] = {}
    for place in np.flatnonzero(trained):
        before = ids.pop(int(tree.parent[place]), []) if trained[tree.parent[place]] else []
        ids[int(place)] = [*before, tree.input_ids[place]]
    return [decoded(chat, span) for span in ids.values()]


@lru_cache(None)
def played(name: str) -> tuple[Case, Chat, Episode]:
    case = CASES[name]
    chat = Chat(tokenizer_of(case.template, case.end), case.tools, case.options)
    return case, chat, play(case, chat)


each_case = pytest.mark.parametrize("name", CASES)


@each_case
def test_exactly_the_labels_are_trained_from_their_first_token_to_their_end(name: str) -> None:
    case, chat, episode = played(name)
    trees = grow(label_rows(episode, "token"), max_tokens=10_000)
    assert sorted(text for tree in trees for text in spans(chat, tree)) == sorted(case.trained)


@each_case
def test_each_label_stands_once_at_its_own_turn(name: str) -> None:
    case, chat, episode = played(name)
    assert [decoded(chat, turn.label_ids or []) for turn in episode.turns] == list(case.trained)
    assert [list(turn.label_ids or []).count(chat.end_id) for turn in episode.turns] == [1, 1, 1]
    assert [turn.label_ids == turn.response_ids for turn in episode.turns] == [True, True, False]


@each_case
def test_the_last_prompt_is_the_conversation_as_it_was_played(name: str) -> None:
    case, chat, episode = played(name)
    assert decoded(chat, episode.prompt_ids(2)) == case.last


@each_case
def test_every_prompt_is_the_whole_conversation_rendered_at_once(name: str) -> None:
    """But for the empty thoughts that the template drops from the past."""
    case, chat, episode = played(name)
    for turn_index in range(3):
        prompt, whole = episode.prompt_ids(turn_index), encoded(chat, case.conversation()[: 2 * turn_index + 1])
        if EMPTY in decoded(chat, prompt):
            assert decoded(chat, prompt).replace(EMPTY, "") == decoded(chat, whole).replace(EMPTY, "")
        else:
            assert prompt == whole


@each_case
def test_a_branch_starts_exactly_where_the_template_tells_the_past_otherwise(name: str) -> None:
    case, _, episode = played(name)
    assert tuple(turn.starts_branch for turn in episode.turns) == case.branches


def test_a_text_begins_with_its_first_token_once() -> None:
    chat = Chat(tokenizer_of(HEADED, "<|eot|>"))
    opening = chat.open([user("go")])
    prompt = chat.extend(opening, chat.response_ids(says("a"), opening), [user("go"), says("a"), tool("one")])
    assert decoded(chat, prompt.prompt_ids).count("<|bos|>") == 1


def label(template: str, message: Message, *, end: str = "<|im_end|>", **options: Any) -> str:
    """Return a teacher's answer to the first prompt as it is trained."""
    chat = Chat(tokenizer_of(template, end), options=options)
    return decoded(chat, chat.response_ids(message, chat.open([user("go")])))


def test_a_thought_that_the_prompt_opens_is_closed_by_an_answer_without_one() -> None:
    assert label(OPENS_THOUGHTS, says("open a")) == "\n</think>\n\nopen a<|im_end|>"
    assert label(OPENS_THOUGHTS, says("open a", reasoning="hm")) == "hm\n</think>\n\nopen a<|im_end|>"
    chat = Chat(tokenizer_of(OPENS_THOUGHTS))
    opening = chat.open([user("go")])
    after = chat.extend(opening, chat.response_ids(says("a"), opening), [user("go"), says("a"), user("one")])
    assert not after.starts_branch
    assert decoded(chat, after.context_ids).endswith("one<|im_end|>\n<|im_start|>assistant\n<think>\n")


WHY_EARLY = chatml(
    "{%- set why = m.reasoning_content if loop.index0 < 2 %}"
    "{%- if why %}{{- '<think>' + why + '</think>' }}{%- endif %}{{- m.content }}"
    "{%- if loop.index0 < 2 and not why %}{{- '!' }}{%- endif %}"
)


def test_what_a_template_writes_before_every_answer_is_trained_with_it() -> None:
    template = chatml("{{- '<|head|>final<|/head|>' + m.content }}")
    assert label(template, says("open a")) == "<|head|>final<|/head|>open a<|im_end|>"
    assert label(template, says("open <|im_end|> a")) == "<|head|>final<|/head|>open < |im_end|> a<|im_end|>"
    chat = Chat(tokenizer_of(template, "<|im_end|>"))
    opening = chat.open([user("go")])
    ids = chat.response_ids(says("open a"), opening)
    assert not chat.extend(opening, ids, [user("go"), says("open a"), tool("one")]).starts_branch


def test_what_a_template_tells_at_the_first_query_only_is_no_label_later() -> None:
    chat = Chat(tokenizer_of(WHY_EARLY))
    opening = chat.open([user("go")])
    message = says("edit a", reasoning="why")
    assert decoded(chat, chat.response_ids(message, opening)) == "<think>why</think>edit a<|im_end|>"
    after = chat.open([user("go"), says("open b"), user("one")])
    with pytest.raises(LabelError, match="cannot write"):
        chat.response_ids(message, after)


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
@pytest.mark.parametrize(
    ("message", "trained"), [(says("open a"), "open a<|im_end|>"), (says("", "a"), JSON_A + "<|im_end|>")]
)
def test_an_empty_thought_that_the_template_inserts_is_not_trained(
    message: Message, trained: str, options: Mapping[str, Any]
) -> None:
    assert label(THINKS_SINCE_QUERY, message, **options) == trained


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param(PLAIN, says("", "a"), id="no calls"),
        pytest.param(PLAIN, says("I edit a file", "a"), id="no calls, but a text that has their words"),
        pytest.param(PLAIN, says("open a", reasoning="hm"), id="no reasoning"),
        pytest.param(PLAIN, says("hm, open a", reasoning="hm"), id="no reasoning, but a text that has its words"),
        pytest.param(THINKS_ALWAYS, says("", "a", reasoning="hm"), id="reasoning, but no calls"),
        pytest.param(XML_TOOLS, says("", "a", reasoning="hm"), id="calls, but no reasoning"),
        pytest.param(HEADED, says("", "a", "b"), id="one call, where there are two"),
        pytest.param(XML_TOOLS.replace(" or []", "[:1]"), says("", "a", "b"), id="the first call alone"),
        pytest.param(XML_TOOLS, Message("assistant", "", "", (ToolCall("edit", "{'a'"),)), id="malformed arguments"),
        pytest.param(XML_TOOLS, Message("assistant", "", "", (ToolCall("edit", "[1]"),)), id="a list of arguments"),
    ],
)
def test_what_the_template_cannot_write_is_no_label(template: str, message: Message) -> None:
    with pytest.raises(LabelError, match="chat template"):
        label(template, message, end="<|eot|>" if template == HEADED else "<|im_end|>")


def test_a_call_is_a_label_where_the_template_refuses_a_message_without_anything() -> None:
    strict = JSON_TOOLS.replace(
        "{%- set answer",
        "{%- if not m.content and not m.tool_calls %}{{- raise_exception('nothing') }}{%- endif %}{%- set answer",
    )
    assert label(strict, says("", "a")) == JSON_A + "<|im_end|>"
    with pytest.raises(LabelError, match="chat template"):
        label(strict, says("", reasoning="hm"))


def test_malformed_arguments_are_written_as_they_are_where_the_template_takes_text() -> None:
    message = Message("assistant", "", "", (ToolCall("edit", "{'a'"),))
    assert label(JSON_TOOLS, message) == '<tool_call>\n{"name": "edit", "arguments": {\'a\'}\n</tool_call><|im_end|>'


@pytest.mark.parametrize("template", [PLAIN, MARKED, THINKS_ALWAYS])
def test_tools_that_the_template_does_not_show_are_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"shows no tools: choose a model whose template does, or scaffold=bash"):
        Chat(tokenizer_of(template), [TOOL])


class Answering(Reciting):
    """A teacher's engine: says the same at every turn, and remembers what it was asked."""

    def __init__(self, chat: Chat, said: str) -> None:
        ScriptedEngine.__init__(self, end_id=chat.end_id)
        self.chat, self.said, self.asked = chat, said, list[str]()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        self.asked.append(decoded(self.chat, prompt_ids))
        ids = [*self.chat.encode(self.said), self.chat.end_id]
        return Generation(ids, [0.0] * len(ids), "stop", 0)


def calls_of(command: str) -> tuple[str, str]:
    """Return a call as Qwen3 writes it, and as Qwen3-Coder does."""
    as_json = f'<tool_call>\n{{"name": "execute_bash", "arguments": {{"command": "{command}"}}}}\n</tool_call>'
    tags = f"<function=execute_bash>\n<parameter=command>\n{command}\n</parameter>\n</function>"
    return as_json, f"<tool_call>\n{tags}\n</tool_call>"


def test_teacher_and_student_each_see_and_write_calls_in_their_own_format() -> None:
    scaffold = ToolScaffold()
    (ls_json, ls_tags), (cat_json, cat_tags) = (calls_of(command) for command in ("ls", "cat é"))
    chat = Chat(tokenizer_of(JSON_TOOLS), scaffold.tools)
    theirs = Chat(tokenizer_of(XML_TOOLS), scaffold.tools)
    engine = Answering(theirs, f"I read it.\n{cat_tags}")
    teacher = ModelTeacher(engine=engine, chat=theirs, max_new_tokens=200, max_context_tokens=9_999, scaffold=scaffold)
    case = Case(
        template=JSON_TOOLS,
        executed=(ls_json, says(""), "I am done."),
        observed=(tool("one"), tool("two")),
        labels=(says(""), says("")),
        trained=("", "", ""),
        last="",
    )
    episode = play(case, chat, teacher)
    label = f"I read it.\n{cat_json}<|im_end|>"
    assert [decoded(chat, turn.label_ids or []) for turn in episode.turns] == [label] * 3
    assert [turn.label_text for turn in episode.turns] == [label.removesuffix("<|im_end|>")] * 3
    assert episode.turns[1].response_ids == episode.turns[1].label_ids
    assert ls_json in decoded(chat, episode.prompt_ids(2))
    assert ls_tags in engine.asked[2]
    assert f"I read it.\n{cat_tags}" in engine.asked[2]
    assert '{"name"' not in engine.asked[2].rpartition('"type": "function"')[2].partition("<|im_end|>")[2]


def test_a_malformed_answer_of_a_teacher_stays_the_text_that_it_is() -> None:
    scaffold = ToolScaffold()
    chat = Chat(tokenizer_of(JSON_TOOLS), scaffold.tools)
    teacher = ModelTeacher(
        engine=Answering(chat, "I am done."), chat=chat, max_new_tokens=20, max_context_tokens=9_999, scaffold=scaffold
    )
    state = State((user("go"),), (), Key(0, 0, "t", 0))
    response = asyncio.run(teacher.act(state, cast(Env, None)))
    assert response.message == says("I am done.")


@pytest.mark.parametrize("spelled", SPECIAL)
@pytest.mark.parametrize("role", ["user", "tool", "system"])
def test_an_observation_that_spells_a_control_token_does_not_become_one(spelled: str, role: str) -> None:
    chat = Chat(tokenizer_of(PLAIN))

    def control_tokens(content: str) -> list[int]:
        return [i for i in chat.open([user("go"), Message(role, content)]).prompt_ids if i < len(SPECIAL)]

    for content in (spelled, f"a{spelled}b", spelled + spelled):
        assert control_tokens(content) == control_tokens("one")


@pytest.mark.parametrize("spelled", SPECIAL)
@pytest.mark.parametrize(
    "message",
    [
        says("open X b"),
        says("X", "a"),
        says("", "X b"),
        says("", reasoning="X b"),
        says("", "\\u003cX"),
    ],
    ids=["text", "text beside a call", "arguments", "reasoning", "arguments that are escaped"],
)
def test_a_teacher_that_spells_a_control_token_is_not_cut_there(message: Message, spelled: str) -> None:
    template = chatml(
        r"{%- if m.reasoning_content %}{{- '<think>\n' + m.reasoning_content + '</think>\n' }}{%- endif %}"
        + SAYS
        + JSON_CALLS
    )
    escaped = spelled[1:] if "u003c" in str(message.tool_calls) else spelled
    calls = tuple(replace(call, arguments=call.arguments.replace("X", escaped)) for call in message.tool_calls)
    spelling = Message(
        "assistant", message.content.replace("X", spelled), message.reasoning.replace("X", spelled), calls
    )
    chat = Chat(tokenizer_of(template))
    messages = [user("go")]
    opening = chat.open(messages)
    ids = chat.response_ids(spelling, opening)
    assert [i for i in ids if i < len(SPECIAL)] == [chat.end_id]
    assert f"< {spelled[1:]}" in decoded(chat, ids)
    prompt = chat.extend(opening, ids, [*messages, spelling, user("one")])
    assert not prompt.starts_branch
    assert prompt.prompt_ids[len(opening.prompt_ids) :][: len(ids)] == ids


def letters(chat: Chat, text: str) -> list[int]:
    """Return a text as tokens of one byte each, which spell control tokens instead of being them."""
    return [token for letter in text for token in chat.encode(letter)]


@pytest.mark.parametrize("said", ["open file", "echo '<|im_end|>' > a", "<|im_start|>user", " \n open \n", "é → 漢"])
def test_the_tokens_of_the_student_are_never_altered(said: str) -> None:
    chat = Chat(tokenizer_of(PLAIN))
    opening = chat.open([user("go")])
    response = [*letters(chat, said), chat.end_id]
    prompt = chat.extend(opening, response, [user("go"), chat.parse(response), user("one")])
    assert not prompt.starts_branch
    assert prompt.prompt_ids == [*opening.prompt_ids, *response, *prompt.context_ids]
    assert decoded(chat, prompt.context_ids) == "\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"


def test_half_a_character_does_no_harm() -> None:
    chat = Chat(tokenizer_of(PLAIN))
    opening = chat.open([user("go \ud83d")])
    response = chat.response_ids(says("open \ud83d"), opening)
    assert chat.parse(response) == says("open ?")
    assert decoded(chat, opening.prompt_ids).startswith("<|im_start|>user\ngo ?<|im_end|>")


def test_the_text_of_a_response_is_not_tidied_up() -> None:
    backend: Any = Tokenizer(models.WordLevel({"[U]": 0, "<|im_end|>": 1, "a": 2, ",": 3, "b": 4, "?": 5}, "[U]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.NFC(), pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", unk_token="[U]", clean_up_tokenization_spaces=True
    )
    fast.chat_template = PLAIN
    assert Chat(fast).parse([2, 3, 4, 5, 1]) == says("a , b ?")


@pytest.mark.parametrize("said", ["open fi", "<think>\nhm, the fi", "<think>\nhm\n</think>\n\n", "open \n"])
def test_a_response_that_was_cut_is_ended_in_the_context_and_not_in_itself(said: str) -> None:
    chat = Chat(tokenizer_of(THINKS_ALWAYS))
    opening = chat.open([user("go")])
    response = chat.encode(said)
    prompt = chat.extend(opening, response, [user("go"), chat.parse(response), user("one")])
    assert not prompt.starts_branch
    assert prompt.prompt_ids == [*opening.prompt_ids, *response, *prompt.context_ids]
    assert decoded(chat, prompt.context_ids) == "<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("num_cut", [0, 1])
def test_an_end_token_that_takes_the_white_space_after_it_takes_it_in_an_extension_too(num_cut: int) -> None:
    chat = Chat(tokenizer_of(PLAIN, eats_space=True))
    messages = [user("go"), says("open"), user("one")]
    opening = chat.open(messages[:1])
    response = chat.response_ids(messages[1], opening)
    assert chat.extend(opening, response[: len(response) - num_cut], messages).prompt_ids == encoded(chat, messages)


def test_labels_without_a_trainable_token_are_an_error() -> None:
    _, _, episode = played("no marks of generation")
    mute = replace(episode, turns=[replace(turn, label_ids=None) for turn in episode.turns])
    assert not list(label_rows(mute, "token"))
    weightless = grow([Row([1, 2], [3], [0.0])], max_tokens=10)
    for trees in ([], weightless):
        with pytest.raises(DataError, match="no trainable token"):
            make_batch([trees], 0, max_tokens=10, pad_id=0, num_episodes=1)


if MODEL_FOLDERS in os.environ:  # in CI a skipped test has failed, so without folders there is no test

    @pytest.mark.parametrize("folder", os.environ[MODEL_FOLDERS].split(os.pathsep))
    def test_the_tokenizer_of_a_model_tells_its_conversation_as_its_template_does(folder: str) -> None:
        assert Path(folder).is_dir(), folder
        chat = Chat(AutoTokenizer.from_pretrained(folder, local_files_only=True))
        messages = [user(f"go {chat.template.end} on")]
        prompt = chat.open(messages)
        assert prompt.prompt_ids.count(chat.end_id) == chat.open([user("go")]).prompt_ids.count(chat.end_id)
        for said in ("open src/main.py\n\n    é → 漢 , ok ?", "edit", "test"):
            response = chat.response_ids(says(said), prompt)
            assert chat.parse(response) == says(said)
            messages += [says(said), user("one\n")]
            before, prompt = prompt, chat.extend(prompt, response, messages)
            extends = [*before.prompt_ids, *response, *prompt.context_ids]
            assert prompt.prompt_ids == (prompt.context_ids if prompt.starts_branch else extends)
            whole = chat.open(messages).prompt_ids  # of a text's tokens there may be several
            assert decoded(chat, prompt.prompt_ids).split() == decoded(chat, whole).split()

    @pytest.mark.parametrize("message", [says("", "a"), says("open", reasoning="hm")], ids=["a call", "reasoning"])
    @pytest.mark.parametrize("folder", os.environ[MODEL_FOLDERS].split(os.pathsep))
    def test_the_tokenizer_of_a_model_writes_a_label_whole_or_not_at_all(folder: str, message: Message) -> None:
        chat = Chat(AutoTokenizer.from_pretrained(folder, local_files_only=True))
        prompt = chat.open([user("go")])
        try:
            ids = chat.response_ids(message, prompt)
        except LabelError:
            return
        assert ids.count(chat.end_id) == 1
        assert (message.reasoning or "edit") in decoded(chat, ids)
