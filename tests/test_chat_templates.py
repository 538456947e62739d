"""All chat templates that TRL ships: three turns are exact token for token, or are refused before the first of them.

Each is tried with text, with thoughts, with calls and with both. The student, the teacher and the student act; every
turn is labelled. The table below says what comes of each template, and playing it or its refusal shows that.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dagger_exp.chat.check import check_student
from dagger_exp.chat.conversation import Chat
from dagger_exp.config.build import build_run
from dagger_exp.config.composing import compose_checked
from dagger_exp.errors import ConfigError
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.training.student import from_scratch
from dagger_exp.training.teacher import from_model
from dagger_exp.types import Message, ToolCall
from tests.test_chat_golden import Case, decoded, play

FOLDER = Path(trl.__file__).with_name("chat_templates")
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
MODES = ("text", "thoughts", "calls", "calls with thoughts")
CONTROL = re.compile(
    r"<[|\uff5c][^|\uff5c<>{}\s]*[|\uff5c]?>|<[^|\uff5c<>{}/\s]+[|\uff5c]>|</?(?:start|end)_of_\w+>|\[/?[A-Z_]+\]|</s>"
)
"""What a template writes that is one token: `<|im_end|>`, `<turn|>`, `<end_of_turn>`, `[INST]`."""
EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*")
END = re.compile(r"<\uff5cend\u2581of\u2581sentence\uff5c>|<\|(?:im_end|eot_id)\|>")
SWITCH = re.compile(r"set \+\+student\.chat_options\.(\w+)=(true|false)")
OPENING = (Message("system", "You repair."), Message("user", "Repair it."))
COMMANDS = ("ls -l", "cat a.py", "grep x b")

NO_TOOLS, UNREAD = "shows no tools", "writes tool calls in a form that the scaffold does not read"
NO_END = "writes no special token after an answer"
NO_END_OF_CALLS = "refuses tool calls (it changes the prompt before them, or does not end them)"
LOSES_CALLS = "refuses tool calls (it leaves a part of them out)"
NO_THOUGHTS = "refuses thoughts (it changes the prompt before them, or does not end them)"
FORGETS, CHANGES = "changes the thoughts of earlier turns", "changes the answers of earlier turns"
EXACT, UNTHINKING, THINKING = "exact", "enable_thinking=false", "enable_thinking=true"
KEEPING, UNCUT = "preserve_thinking=true", "truncate_history_thinking=false"
GROUPS: Mapping[tuple[str, str, str, str], str] = {
    (EXACT, EXACT, NO_TOOLS, NO_TOOLS): (
        "cohere cohere2 cohere2_training cohere_training deepseek_r1_distill_training gemma gemma3 "
        "gemma3_training gemma_training idefics3 idefics3_training llama3 llama3_training llava_next "
        "llava_next_training phi3 phi3_5 phi3_5_training phi3_training qwen2_5_vl qwen2_5_vl_training smolvlm "
        "smolvlm_training"
    ),
    (FORGETS, FORGETS, NO_TOOLS, NO_TOOLS): "deepseek_r1_distill deepseekv3 deepseekv3_training",
    (EXACT, FORGETS, NO_END_OF_CALLS, NO_END_OF_CALLS): "diffusion_gemma diffusion_gemma_training gemma4_v5",
    (EXACT, EXACT, NO_END_OF_CALLS, NO_END_OF_CALLS): "gemma4 gemma4_v3 gemma4_v4",
    (EXACT, EXACT, UNREAD, UNREAD): (
        "gemma4_v2 lfm2_v2 lfm2_v2_training llama3_1 llama3_2 muse_glimmer muse_glimmer_training"
    ),
    (NO_END, NO_END, NO_END, NO_END): "glm4moe",
    (UNTHINKING, FORGETS, NO_END_OF_CALLS, NO_END_OF_CALLS): "glm4moe_training",
    (CHANGES, CHANGES, NO_END_OF_CALLS, NO_END_OF_CALLS): "gptoss gptoss_training",
    (EXACT, EXACT, LOSES_CALLS, LOSES_CALLS): "lfm2 lfm2_training",
    (KEEPING, KEEPING, UNREAD, UNREAD): "lfm2_2_5 lfm2_2_5_v2 lfm2_2_5_vl",
    (UNTHINKING, UNCUT, EXACT, EXACT): (
        "nemotron_3_5_lightning nemotron_3_5_lightning_training nemotron_3_nano nemotron_3_nano_training "
        "nemotron_3_super nemotron_3_super_training nemotron_3_ultra nemotron_3_ultra_training"
    ),
    (EXACT, EXACT, EXACT, EXACT): (
        "qwen2_5 qwen2_5_training qwen3_5_think_training qwen3_6_training qwen3_8 qwen3_8_training "
        "qwen3_instruct_2507 qwen3_instruct_2507_training qwen3_training qwen3_vl qwen3_vl_training"
    ),
    (UNTHINKING, FORGETS, EXACT, EXACT): "qwen3 qwen3_5_think",
    (EXACT, NO_THOUGHTS, EXACT, THINKING): "qwen3_5_nothink",
    (EXACT, THINKING, EXACT, THINKING): "qwen3_5_nothink_training",
    (UNTHINKING, KEEPING, EXACT, EXACT): "qwen3_6",
}
OUTCOMES = {name: outcomes for outcomes, names in GROUPS.items() for name in names.split()}
"""By mode: exact, the option with which it is exact, or a part of the refusal."""


@lru_cache(None)
def tokenizer_of(name: str) -> Any:
    """Return a tokenizer of one token per byte and one per control token of a template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend: Any = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    template = (FOLDER / f"{name}.jinja").read_text()
    control = sorted({*CONTROL.findall(template), "<eos>", "<bos>"})
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", bos_token="<bos>")
    fast.chat_template = template
    return fast


def scaffold_of(mode: str) -> ToolScaffold | BashScaffold:
    """Return what reads the answers of a mode."""
    return ToolScaffold() if "calls" in mode else BashScaffold()


def answer(mode: str, command: str) -> Message:
    """Return an answer of the teacher."""
    message = scaffold_of(mode).write(ToolCall("execute_bash", json.dumps({"command": command})))
    return replace(message, reasoning="hm" if "thoughts" in mode else "")


def chat_of(name: str, mode: str, **options: bool) -> Chat:
    """Return the chat of a template, checked as a run does it when its student is built; raises `ConfigError`."""
    scaffold = scaffold_of(mode)
    chat = Chat(tokenizer_of(name), scaffold.tools, options)
    check_student(chat, scaffold, thoughts="thoughts" in mode and chat.template.thought is not None)
    return chat


@dataclass(frozen=True)
class Script:
    """Three turns: what the student says, as text and as a message, what the teacher says, and what is observed."""

    said: Sequence[str]
    meant: Sequence[Message]
    labels: Sequence[Message]
    observed: Sequence[Message]

    def conversation(self, turn_index: int) -> list[Message]:
        """Return the messages before a turn; the teacher acts at the second."""
        acted = [self.meant[0], self.labels[1]]
        later = zip(acted, self.observed, strict=True)
        return [*OPENING, *[message for turn in list(later)[:turn_index] for message in turn]]


def script(chat: Chat, mode: str) -> Script:
    """Return the turns in which the student says what the template writes."""
    observed = [Message("tool" if "calls" in mode else "user", text) for text in ("a.py\n[exit code 0]", "x\n")]
    labels = [answer(mode, command) for command in COMMANDS]
    if chat.template.thought is None:  # the student's thoughts are a part of its text
        labels = [replace(label, reasoning="") for label in labels]
    opening = chat.open(OPENING)
    said = [decoded(chat, chat.response_ids(label, opening)[:-1]) for label in labels]
    if chat.template.thought or "thoughts" not in mode:
        return Script(said, labels, labels, observed)
    rest = [text.partition("</think>")[2] or text for text in said]  # a label closes a thought that the prompt opens
    thoughtful = [f"hm\n</think>\n\n{text.strip()}" for text in rest]
    begin = "" if opening.text.rstrip().endswith("<think>") else f"{chat.template.head}<think>\n"
    meant = [Message("assistant", f"<think>\n{text}") for text in thoughtful]
    return Script([begin + text for text in thoughtful], meant, labels, observed)


def whole(name: str, chat: Chat, messages: Sequence[Message]) -> str:
    """Return a conversation as the template writes it at once, with nothing of the code under test."""
    rows: list[dict[str, Any]] = []
    for message in messages:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            row |= dict.fromkeys(("reasoning_content", "thinking"), message.reasoning)
        if message.tool_calls:
            [call] = message.tool_calls
            function = {"name": call.name, "arguments": json.loads(call.arguments)}
            row["tool_calls"] = [{"id": "call00000", "type": "function", "function": function}]
        rows.append(row)
    if name in ("gemma", "gemma_training"):  # they refuse a system message
        rows[:2] = [{"role": "user", "content": f"{rows[0]['content']}\n\n{rows[1]['content']}"}]
    if name.partition("_")[0] in ("idefics3", "llava", "smolvlm"):  # they take texts as parts
        rows = [{**row, "content": [{"type": "text", "text": row["content"]}]} for row in rows]
    return chat.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True, **chat.template.options)


def assert_exact(name: str, chat: Chat, mode: str) -> None:
    """Play three turns; each prompt must be the whole conversation, but for the empty thoughts of a template."""
    turns = script(chat, mode)
    case = Case(
        template="",
        executed=(turns.said[0], turns.labels[1], turns.said[2]),
        observed=(turns.observed[0], turns.observed[1]),
        labels=(turns.labels[0], turns.labels[2]),
        trained=("", "", ""),
        last="",
        opening=OPENING,
    )
    episode = play(case, chat)
    assert [turn.starts_branch for turn in episode.turns] == [True, False, False]
    assert not any(turn.label_error for turn in episode.turns)
    for turn_index in range(3):
        played = decoded(chat, episode.prompt_ids(turn_index))
        expected = whole(name, chat, turns.conversation(turn_index))
        assert EMPTY_THOUGHT.sub("", played) == EMPTY_THOUGHT.sub("", expected)
    scaffold = scaffold_of(mode)
    for turn, label in zip(episode.turns, turns.labels, strict=True):
        assert turn.label_ids
        assert scaffold.read(chat.parse(turn.label_ids)) == scaffold.read(label)
        assert scaffold.read(chat.parse(turn.response_ids)) == scaffold.read(label)


@lru_cache(None)
def accepted(name: str, mode: str) -> tuple[Chat | None, str]:
    """Return the chat of a template, with the option that the refusal names, and what came of it."""
    try:
        return chat_of(name, mode), "exact"
    except ConfigError as error:
        found = SWITCH.search(str(error))
        if found is None:
            return None, str(error)
        return chat_of(name, mode, **{found[1]: found[2] == "true"}), f"{found[1]}={found[2]}"


def assert_holds(chat: Chat, mode: str, seed: int) -> None:
    """Say random tokens, as a student of random weights does: prompts go on or start a branch, and nothing fails."""
    dice, role = random.Random(seed), "tool" if "calls" in mode else "user"
    messages, prompt = [*OPENING], chat.open(OPENING)
    for _ in range(3):
        ids = [*dice.choices(range(len(chat.tokenizer.get_vocab())), k=12), chat.end_id]
        messages += [chat.parse(ids), Message(role, "a.py")]
        before, prompt = prompt, chat.extend(prompt, ids, messages)
        grown = [*before.prompt_ids, *ids, *prompt.context_ids]
        assert prompt.prompt_ids == (prompt.context_ids if prompt.starts_branch else grown)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_three_turns_are_exact_or_refused_before_the_first(name: str, mode: str) -> None:
    chat, seen = accepted(name, mode)
    if chat is None:
        assert OUTCOMES[name][MODES.index(mode)] in seen
        assert re.search(r"^the chat template [^\n]*: (choose|set) [^\n]*\.$", seen)
    else:
        assert seen == OUTCOMES[name][MODES.index(mode)]
        assert_exact(name, chat, mode)
        assert_holds(chat, mode, seed=len(name))


def test_the_table_is_of_the_templates_that_there_are() -> None:
    assert sorted(OUTCOMES) == NAMES


def model_with(name: str, folder: Path) -> str:
    """Return the folder of a small random model with a template, and with the byte tokenizer of this package."""
    student = from_scratch(
        vocabulary=(),
        tokenizer="bytes",
        hidden_size=16,
        num_layers=1,
        num_heads=1,
        intermediate_size=16,
        max_context_tokens=4096,
        seed=0,
    )
    template = END.sub("<|end|>", (FOLDER / f"{name}.jinja").read_text())
    student.tokenizer.chat_template = template
    student.save(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("qwen3", (), r"changes the thoughts .*: set \+\+student\.chat_options\.enable_thinking=false\.$"),
        ("qwen3", ("++student.chat_options.enable_thinking=false",), ""),
        ("deepseek_r1_distill", (), r"changes the thoughts of earlier turns.*: choose another model\.$"),
        ("qwen2_5", ("teacher=openai", "teacher.model=m", "teacher.keep_reasoning=true"), r"writes no thoughts"),
    ],
)
def test_a_run_looks_at_the_template_before_it_plays(
    name: str, more: Sequence[str], reason: str, tmp_path: Path
) -> None:
    overrides = ["env=repo_repair", "student=hf", f"student.path={model_with(name, tmp_path / 'model')}", *more]
    cfg = compose_checked("train", overrides)
    with pytest.raises(ConfigError, match=reason) if reason else nullcontext():
        build_run(cfg, tmp_path / "run", "run").close()
    assert not (tmp_path / "run" / "rounds" / "000").exists()


def test_a_teacher_in_this_process_whose_calls_nobody_reads_is_refused(tmp_path: Path) -> None:
    path = model_with("llama3_1", tmp_path)
    with pytest.raises(ConfigError, match=r"^the chat template of the teacher .*: choose another teacher, or scaffold"):
        from_model(path=path, max_context_tokens=4096, max_new_tokens=9, scaffold=ToolScaffold())
