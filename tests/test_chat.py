"""Messages to token ids and back, with chat templates of the shapes that are in use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dagger_exp.chat.conversation import Chat, Prompt
from dagger_exp.chat.syntax import tells_each_alone
from dagger_exp.errors import ConfigError, DataError
from dagger_exp.types import Message, ToolCall

CORPUS = ["open src/main.py\n\n", "fail test_main\n", "edit edit open open", "user\nassistant\nsystem\n"]
START, END = "<|im_start|>", "<|im_end|>"
GENERATION = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def template(assistant: str) -> str:
    """Return a ChatML template that writes the content of the assistant's messages as an expression says."""
    return (
        "{% set last_query = namespace(index=-1) %}{% for m in messages %}"
        "{% if m.role == 'user' %}{% set last_query.index = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}" + assistant + "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}"
        "{% endfor %}" + GENERATION
    )


EMPTY = "<think>\n\n</think>\n\n"
CHATML = template("{{ m.content }}")
EACH_ALONE = CHATML[CHATML.rindex("{% for m in messages %}") :]
ALWAYS_STRIPS = template("{{ m.content.split('</think>')[-1].strip() }}")
QWEN3 = template(
    "{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip() if '</think>' in m.content else '' %}"
    "{% if loop.index0 > last_query.index and (loop.last or thought) %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + answer }}{% else %}{{ answer }}{% endif %}"
)
TRIMS = template("{{ m.content | trim }}")
NO_END = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}" + GENERATION


def byte_pairs(chat_template: str) -> Any:
    """Return a small byte-level BPE tokenizer, with merges of line breaks and of words."""
    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer: Any = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[START, END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 50, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, additional_special_tokens=[START])
    fast.chat_template = chat_template
    return fast


def make_chat(chat_template: str = CHATML) -> Chat:
    return Chat(byte_pairs(chat_template))


def user(content: str) -> Message:
    return Message("user", content)


def said(content: str) -> Message:
    return Message("assistant", content)


def rendered(chat: Chat, messages: Sequence[Message]) -> list[int]:
    rows = [{"role": m.role, "content": m.content} for m in messages]
    return chat.tokenizer.apply_chat_template(rows, tokenize=True, add_generation_prompt=True, return_dict=False)


def written(chat: Chat, content: str) -> list[int]:
    """Return a teacher's text in the student's format; as text alone it needs no conversation."""
    return chat.response_ids(said(content), chat.open([user("open")]))


def converse(chat: Chat, opening: Sequence[Message], exchange: Sequence[tuple[str, str]]) -> list[Prompt]:
    """Return the prompts of a conversation: after the opening, and after each response and observation."""
    messages, prompts = list(opening), [chat.open(opening)]
    for response, observation in exchange:
        ids = chat.response_ids(said(response), prompts[-1])
        messages += [said(response), user(observation)]
        prompts.append(chat.extend(prompts[-1], ids, messages))
    return prompts


EXCHANGE = [("open src/main.py", "fail\n\ntest_main"), ("edit é → 漢", "\n\nok"), ("edit edit", "fail test_main\n")]
OPENING = [Message("system", "You repair.\n"), user("open a"), said("open"), user("edit")]


@pytest.mark.parametrize("chat_template", [CHATML, EACH_ALONE, ALWAYS_STRIPS, QWEN3, TRIMS])
def test_a_prompt_is_extended_and_equals_the_whole_conversation_rendered_at_once(chat_template: str) -> None:
    chat = make_chat(chat_template)
    prompts = converse(chat, OPENING, EXCHANGE)
    messages = list(OPENING)
    for turn_index, prompt in enumerate(prompts):
        assert prompt.prompt_ids == rendered(chat, messages)
        assert prompt.starts_branch == (turn_index == 0)
        if turn_index < len(EXCHANGE):
            messages += [said(EXCHANGE[turn_index][0]), user(EXCHANGE[turn_index][1])]


def test_the_tokens_of_a_response_are_kept_as_they_were_produced() -> None:
    chat = make_chat()
    opening = chat.open([user("open")])
    letters = [token for letter in " open\n" for token in chat.encode(letter)]
    assert len(letters) > len(chat.encode(" open\n"))
    response = [*letters, chat.end_id]
    prompt = chat.extend(opening, response, [user("open"), chat.parse(letters), user("ok")])
    assert prompt.prompt_ids == [*opening.prompt_ids, *response, *prompt.context_ids]
    assert not prompt.starts_branch


def test_what_the_template_writes_after_the_end_belongs_to_the_context() -> None:
    chat = make_chat()
    response = written(chat, "edit")
    assert chat.tokenizer.decode(response) == "edit<|im_end|>"
    context = converse(chat, [user("open")], [("edit", "ok")])[1].context_ids
    assert chat.tokenizer.decode(context) == "\n<|im_start|>user\nok<|im_end|>\n<|im_start|>assistant\n"


def test_a_response_that_was_cut_is_ended_by_the_context() -> None:
    chat = make_chat()
    messages = [user("open"), said("edit"), user("ok")]
    prompt = chat.extend(chat.open(messages[:1]), written(chat, "edit")[:-1], messages)
    assert prompt.context_ids[0] == chat.end_id
    assert prompt.prompt_ids == rendered(chat, messages)


@pytest.mark.parametrize("chat_template", [ALWAYS_STRIPS, QWEN3])
def test_a_template_that_drops_reasoning_starts_a_branch_and_is_extended_after_it(chat_template: str) -> None:
    chat = make_chat(chat_template)
    exchange = [("<think>\nfail\n</think>\n\nopen a", "ok"), ("edit", "fail"), ("<think>\nno\n</think>\n\nedit", "ok")]
    prompts = converse(chat, [user("open")], exchange)
    assert [prompt.starts_branch for prompt in prompts] == [True, True, False, True]
    messages = [user("open")]
    for (response, observation), prompt in zip(exchange, prompts[1:], strict=True):
        messages += [said(response), user(observation)]
        assert prompt.prompt_ids == rendered(chat, messages)
    assert prompts[1].context_ids == prompts[1].prompt_ids


@pytest.mark.parametrize(
    ("chat_template", "thought"), [(ALWAYS_STRIPS, EMPTY), (QWEN3, EMPTY), (template("{{ '" + EMPTY + "edit' }}"), "")]
)
def test_an_empty_thought_that_the_template_drops_or_adds_later_changes_no_token(
    chat_template: str, thought: str
) -> None:
    chat = make_chat(chat_template)
    response = written(chat, thought + "edit")
    messages = [user("open"), said(thought + "edit"), user("ok")]
    opening = chat.open(messages[:1])
    prompt = chat.extend(opening, response, messages)
    assert not prompt.starts_branch
    assert prompt.prompt_ids == [*opening.prompt_ids, *response, *prompt.context_ids]
    assert chat.tokenizer.decode(prompt.context_ids) == "\n<|im_start|>user\nok<|im_end|>\n<|im_start|>assistant\n"


def test_an_answer_that_is_dropped_whole_starts_a_branch() -> None:
    prompts = converse(make_chat(ALWAYS_STRIPS), [user("open")], [("<think>edit</think>", "ok")])
    assert prompts[1].starts_branch


def test_a_template_that_changes_an_earlier_observation_starts_a_branch() -> None:
    forgets = CHATML.replace("{{ m.content }}{% endif %}", "{{ m.content if loop.last else '...' }}{% endif %}")
    chat = make_chat(forgets)
    prompt = converse(chat, [user("open")], [("edit", "ok")])[1]
    assert prompt.starts_branch
    assert "..." in chat.tokenizer.decode(prompt.prompt_ids)


def test_a_template_without_end_tokens_starts_a_branch() -> None:
    prompts = converse(make_chat(NO_END), [user("open")], EXCHANGE)
    assert all(prompt.starts_branch for prompt in prompts)


def test_white_space_around_a_response_is_no_change() -> None:
    chat = make_chat(TRIMS)
    messages = [user("open"), said("\n edit \n"), user("ok")]
    response = written(chat, messages[1].content)
    assert not chat.extend(chat.open(messages[:1]), response, messages).starts_branch


@pytest.mark.parametrize("chat_template", [CHATML, EACH_ALONE, ALWAYS_STRIPS, QWEN3, TRIMS])
def test_line_ends_of_windows_in_an_answer_start_no_branch(chat_template: str) -> None:
    prompts = converse(make_chat(chat_template), OPENING, [("open\r\n\r\nedit\r\n", "ok\r\n"), ("edit\r\n", "fail")])
    assert [prompt.starts_branch for prompt in prompts] == [True, False, False]


def test_several_messages_may_follow_a_response() -> None:
    chat = make_chat()
    messages = [user("open"), said("edit"), user("ok"), user("fail")]
    response = written(chat, messages[1].content)
    assert chat.extend(chat.open(messages[:1]), response, messages).prompt_ids == rendered(chat, messages)


@given(st.text().filter(lambda text: "<|" not in text))
def test_a_message_of_the_teacher_comes_back(content: str) -> None:
    ids = written(ROUND_TRIP, content)
    assert ids.count(ROUND_TRIP.end_id) == 1
    assert ids[-1] == ROUND_TRIP.end_id
    assert ROUND_TRIP.parse(ids) == ROUND_TRIP.parse(ids[:-1]) == said(content.strip())


ROUND_TRIP = make_chat()


class Counting:
    """A tokenizer that counts the messages it renders and the characters it encodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.num_chars, self.num_messages = tokenizer, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        self.num_chars += len(text)
        return self.tokenizer.encode(text, **options)

    def apply_chat_template(self, rows: Sequence[Any], **options: Any) -> Any:
        self.num_messages += len(rows)
        return self.tokenizer.apply_chat_template(rows, **options)


def test_the_cost_of_a_turn_does_not_grow_with_the_turns_before() -> None:
    counting: Any = Counting(byte_pairs(EACH_ALONE))
    chat, messages, counts = Chat(counting), list(OPENING), list[tuple[int, int]]()
    prompt = chat.open(messages)
    for _ in range(40):
        messages += [said("edit"), user("ok fail")]
        counting.num_chars = counting.num_messages = 0
        prompt = chat.extend(prompt, written(chat, "edit"), messages)
        counts.append((counting.num_chars, counting.num_messages))
    assert prompt.prompt_ids == rendered(chat, messages)
    assert len(set(counts)) == 1
    assert counts[0] < (200, 10)


@pytest.mark.parametrize(
    "chat_template",
    [
        EACH_ALONE,
        EACH_ALONE.replace("{{ m.content }}", "{{ m.content | trim }}"),
        "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}" + EACH_ALONE,
        EACH_ALONE.replace(
            "{{ m.content }}", "{% for call in m.tool_calls %}{{ loop.index }}{% endfor %}{{ m.content }}"
        ),
        EACH_ALONE.replace("{{ m.content }}", "{% set text = m.content.split('x')[-1] %}{{ text }}"),
    ],
)
def test_a_template_whose_loop_looks_at_its_message_alone_is_known(chat_template: str) -> None:
    assert tells_each_alone(chat_template)


EACH = "{% for m in messages %}{{ m.content }}"


@pytest.mark.parametrize(
    "chat_template",
    [
        template("{{ m.content if loop.last }}"),
        CHATML,
        "{% set first = messages[0] %}" + EACH + "{% endfor %}",
        EACH + "{% endfor %}{{ messages | length }}",
        EACH + "{{ messages[loop.index0 - 1].role }}{% endfor %}",
        EACH + "{{ loop.index }}{% endfor %}",
        EACH + "{% else %}nothing{% endfor %}",
        "{% for m in messages if m.content %}{{ m.content }}{% endfor %}",
        "{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
        "{% set seen = namespace(n=0) %}" + EACH + "{% set seen.n = seen.n + 1 %}{{ seen.n }}{% endfor %}",
        "{% set comma = joiner() %}" + EACH + "{{ comma() }}{% endfor %}",
        "{% macro say(m) %}{{ messages | length }}{% endmacro %}" + EACH + "{{ say(m) }}{% endfor %}",
        "{% set seen = namespace(n=0) %}{% if true %}{% macro next() %}{% set seen.n = seen.n + 1 %}{{ seen.n }}"
        "{% endmacro %}{% endif %}" + EACH + "{{ next() }}{% endfor %}",
        "{% set dict = namespace(n=0) %}" + EACH + "{% set dict.n = dict.n + 1 %}{{ dict.n }}{% endfor %}",
        "{% set cycler = cycler('a', 'b') %}" + EACH + "{{ cycler.next() }}{% endfor %}",
        EACH + "{% break %}{% endfor %}",
        "{% if tools %}" + EACH + "{% endfor %}{% endif %}",
        EACH + "{% endfor %}" + EACH + "{% endfor %}",
        "no loop",
        "{{ broken",
    ],
)
def test_a_template_that_could_tell_the_past_otherwise_is_rendered_whole(chat_template: str) -> None:
    assert not tells_each_alone(chat_template)


def test_a_template_that_refuses_a_role_is_named() -> None:
    refusal = "{% if m.role == 'tool' %}{{ raise_exception('Tool role not supported.') }}{% endif %}"
    chat = Chat(byte_pairs(EACH_ALONE.replace("{{ m.content }}", refusal + "{{ m.content }}")))
    with pytest.raises(ConfigError, match=r"refuses the conversation \(Tool role not supported\): choose a model"):
        chat.open([user("ok"), said("edit"), Message("tool", "ok")])


@pytest.mark.parametrize("does", ["{{ raise_exception('no system') }}", "{% set m = {'role': 'user'} %}"])
def test_where_a_template_takes_no_system_message_it_stands_before_the_users(does: str) -> None:
    chat = make_chat(EACH_ALONE.replace("%}", "%}{% if m.role == 'system' %}" + does + "{% endif %}", 1))
    system = [Message("system", "You repair."), user("open")]
    exchange = [("edit", "ok"), ("edit open", "fail")]
    prompts = converse(chat, system, exchange)
    merged = converse(chat, [user("You repair.\n\nopen")], exchange)
    assert [p.prompt_ids for p in prompts] == [p.prompt_ids for p in merged]
    assert [p.starts_branch for p in prompts] == [True, False, False]


STRICT_CALLS = template(
    "{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% if c.id is undefined or c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
    "{{ '[CALL]' + c.function.name + c.id }}{% endfor %}"
).replace(
    "{{ m.content }}{% endif %}", "{{ m.content + (m.name + m.tool_call_id if m.role == 'tool' else '') }}{% endif %}"
)


def test_a_call_and_its_answer_have_the_id_that_a_template_wants() -> None:
    """As Mistral's, which also refuses ids of another length."""
    chat = make_chat(STRICT_CALLS)
    messages, prompts = [user("go")], [chat.open([user("go")])]
    for file in "ab":
        call = Message("assistant", "", tool_calls=(ToolCall("edit", f'{{"file": "{file}"}}'),))
        ids = chat.response_ids(call, prompts[-1])
        messages += [call, Message("tool", "ok")]
        prompts.append(chat.extend(prompts[-1], ids, messages))
    assert [prompt.starts_branch for prompt in prompts] == [True, False, False]
    text = chat.tokenizer.decode(prompts[-1].prompt_ids)
    ids = re.findall(r"\[CALL\]edit(.{9})", text)
    assert len(set(ids)) == 2
    assert all(f"okedit{one}" in text for one in ids)


def test_a_tokenizer_must_have_a_template_and_an_end() -> None:
    mute, endless = byte_pairs(""), byte_pairs(CHATML)
    endless.eos_token = None
    for tokenizer in (mute, endless):
        with pytest.raises(DataError, match=r"chat_template.*eos_token"):
            Chat(tokenizer)


def test_the_hash_tells_templates_apart() -> None:
    assert make_chat(CHATML).template.hash == make_chat(CHATML).template.hash != make_chat(QWEN3).template.hash


def test_a_prompt_does_not_change_with_the_day() -> None:
    dated = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + EACH_ALONE
    chat = make_chat(dated)
    assert "Today is 01 Jan 2026<|im_end|>" in chat.open([user("go")]).text
    given = Chat(byte_pairs(dated), options={"strftime_now": lambda form: "Monday"})
    assert "Today is Monday<|im_end|>" in given.open([user("go")]).text


def test_a_call_that_a_template_cannot_take_is_refused_in_a_sentence() -> None:
    """As one whose arguments are no JSON, where the template goes through them."""
    calls = "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | items | list }}{% endfor %}"
    chat = make_chat(template(calls))
    with pytest.raises(ConfigError, match=r"refuses the conversation \(Can only get item pairs"):
        chat.open([user("go"), Message("assistant", "", tool_calls=(ToolCall("bash", "ls -la"),)), user("on")])
