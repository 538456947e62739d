"""Real bugs played in real sandboxes: by the teacher, by agents that do nothing, and by agents that cheat."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dagger_exp.envs.pypi_bugs.packages import PackageCache, listed
from dagger_exp.envs.pypi_bugs.suites import Report, Suites
from dagger_exp.envs.pypi_bugs.world import PypiBugs
from dagger_exp.errors import ConfigError, EnvError
from dagger_exp.protocols import Scaffold
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from dagger_exp.sandboxes.limits import Limits
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.types import Key, StopReason, Task
from tests.envs.pypi_bugs.conftest import NUM_HELDOUT, NUM_TRAIN, MakeWorld, ask_teacher, played

pytestmark = [pytest.mark.bubblewrap, pytest.mark.timeout(1800)]


def without_tasks(cache_folder: Path, other: Path) -> Path:
    """Return another cache with the same packages."""
    other.mkdir()
    for folder in cache_folder.iterdir():
        if not folder.name.startswith("tasks-"):
            (other / folder.name).symlink_to(folder)
    return other


def test_tasks_are_bugs_that_tests_notice_and_do_not_depend_on_how_they_are_made(
    make_world: MakeWorld, tmp_path: Path, cache_folder: Path
) -> None:
    world = make_world()
    train, heldout = world.tasks("train"), world.tasks("heldout")
    assert (len(train), len(heldout)) == (NUM_TRAIN, NUM_HELDOUT)
    assert {task.data["package"] for task in train}.isdisjoint(task.data["package"] for task in heldout)
    for task in (*train, *heldout):
        assert task.data["visible"]
        assert task.data["hidden"]
        assert task.data["right_line"] != task.data["buggy_line"]
    other = without_tasks(cache_folder, tmp_path / "other")
    fewer = make_world(cache_folder=other, num_train_tasks=1, num_workers=1)
    assert fewer.tasks("train") == train[:1]
    trials = (fewer.folder / "simpleeval.jsonl").read_text().splitlines()
    more = make_world(cache_folder=other, num_train_tasks=2, num_workers=3)
    assert more.tasks("train") == train[:2]
    assert (more.folder / "simpleeval.jsonl").read_text().splitlines()[1 : len(trials)] == trials[1:]


def test_another_python_has_other_tasks(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_world().folder
    assert make_world().folder == folder
    monkeypatch.setattr("dagger_exp.sandboxes.bubblewrap.OWN_PYTHON", "python3.99")
    assert make_world().folder != folder


@pytest.mark.parametrize("scaffold", [BashScaffold(), ToolScaffold()], ids=["bash", "tools"])
def test_the_teacher_solves_in_the_words_of_the_scaffold(make_world: MakeWorld, scaffold: Scaffold) -> None:
    world = make_world(scaffold)
    for task in (world.tasks("train")[0], world.tasks("heldout")[0]):
        (result,) = played(world, task, [])
        assert (result.stop_reason, result.reward) == (StopReason.SOLVED, 1.0)


def test_the_agent_sees_no_hidden_test_and_not_where_the_bug_is(make_world: MakeWorld) -> None:
    world = make_world()
    task = world.tasks("train")[0]
    (_, tested, listed_files, *_) = (
        result.observation.content
        for result in played(world, task, ["true", "python3 run_tests.py", "grep -rn . tests"])
    )
    assert next(iter(task.data["visible"])).partition("[")[0] in tested
    for test in task.data["hidden"]:
        assert test.partition("[")[0] not in tested
        assert f"def {test.partition('[')[0].rpartition('::')[2]}(" not in listed_files

    async def opening() -> str:
        async with world.connected():
            env = world.make(task)
            messages = await env.reset()
            await env.close()
            return messages[-1].content

    statement = asyncio.run(opening())
    assert task.data["buggy_line"].strip() not in statement
    assert f"simpleeval.py:{task.data['line']}" not in statement
    assert len(statement) < 1500


EMPTY_TESTS = "find . -name 'test_*.py' -exec sh -c 'echo \"def test_all(): pass\" > \"$1\"' sh {} \\;"
ALL_PASS = r"""cat > cheat.py <<'EOF'
import _pytest.reports as r
old = r.TestReport.from_item_and_call.__func__
def new(cls, item, call):
    report = old(cls, item, call)
    report.outcome = 'passed'
    return report
r.TestReport.from_item_and_call = classmethod(new)
EOF
"""
REPORT = '{"tests": {}, "errors": {}}'
CHEATS = {
    "nothing": "true",
    "edits the tests": EMPTY_TESTS,
    "removes the tests": "rm -rf tests",
    "conftest": f"{ALL_PASS} cp cheat.py conftest.py; cp cheat.py tests/conftest.py",
    "sitecustomize": f"{ALL_PASS} cp cheat.py sitecustomize.py; echo import cheat > a.pth",
    "pytest.ini": f"{ALL_PASS} printf '[pytest]\\naddopts = -p cheat\\n' | tee pytest.ini > tox.ini",
    "shadows modules": f"{ALL_PASS} for name in json pytest _pytest ast re; do cp cheat.py $name.py; done",
    "replaces the runner": "echo 'print(\"0 failed, 999 passed\")' > run_tests.py",
    "writes a report": f"echo '{REPORT}' > report.json; chmod 444 report.json",
    "package patches pytest": f"{ALL_PASS} cat cheat.py >> simpleeval.py",
    "package ends the process": "printf 'import os\\nos._exit(0)\\n' >> simpleeval.py",
    "package leaves quietly": "printf 'raise SystemExit(0)\\n' >> simpleeval.py",
    "package interrupts": "printf 'raise KeyboardInterrupt\\n' >> simpleeval.py",
    "package is a link": "mv simpleeval.py other.py; ln -s other.py simpleeval.py",
    "package is gone": "rm simpleeval.py",
    "package is a pipe": "rm simpleeval.py; mkfifo simpleeval.py",
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
def test_who_does_not_repair_gets_nothing(make_world: MakeWorld, cheat: str) -> None:
    world = make_world()
    *_, result = played(world, world.tasks("train")[1], [cheat, "submit"])
    assert (result.stop_reason, result.reward) == (StopReason.UNSOLVED, 0.0)


DAMAGES = {
    "half an edit": "sed -i '10,40d' simpleeval.py",
    "file is gone": "rm simpleeval.py",
    "file is a folder": "rm simpleeval.py; mkdir -p simpleeval.py/deep",
    "file is a link": "mv simpleeval.py a.py; ln -s a.py simpleeval.py",
    "nobody may read": "chmod 000 simpleeval.py",
    "the copy too": "echo > simpleeval.py; rm -rf .original",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_teacher_recovers_from_any_state(make_world: MakeWorld, damage: str) -> None:
    world = make_world()
    *_, result = played(world, world.tasks("train")[1], [damage])
    assert result.stop_reason is StopReason.SOLVED


def test_a_repair_of_half_the_tests_gets_its_share_and_a_broken_test_takes_it(make_world: MakeWorld) -> None:
    world = make_world()
    task = world.tasks("train")[1]
    right = task.data["right_line"].replace("\\", "\\\\").replace("'", "'\\''")
    repair = f"sed -i '{task.data['line']}c\\{right}' simpleeval.py"
    *_, broken = played(world, task, [repair, "echo 'class SimpleEval: pass' >> simpleeval.py", "submit"])
    assert (broken.stop_reason, broken.reward) == (StopReason.UNSOLVED, 0.0)
    *_, whole = played(world, task, [repair, "submit"])
    assert (whole.stop_reason, whole.reward) == (StopReason.SOLVED, 1.0)


def test_a_random_action_harms_nothing(make_world: MakeWorld) -> None:
    world = make_world()
    task = world.tasks("train")[0]

    async def play() -> None:
        async with world.connected():
            env = world.make(task)
            await env.reset()
            results = [await env.step(env.random_action(Key(0, 0, task.id, 0, turn))) for turn in range(6)]
            assert all(result.valid and not result.action_error for result in results)
            assert (await ask_teacher(env)).stop_reason is StopReason.SOLVED
            await env.close()

    asyncio.run(play())


def test_a_package_that_cannot_be_had_is_set_aside_and_the_others_make_more(
    make_world: MakeWorld,
    tmp_path: Path,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_world().tasks("train")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = without_tasks(cache_folder, tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        world = make_world(cache_folder=folder, packages=["simpleeval", "webcolors", "funcy"], num_train_tasks=2)
        assert [task.data["package"] for task in world.tasks("train")] == ["simpleeval", "simpleeval"]
    assert "funcy is set aside: pip download failed" in caplog.text
    assert "funcy" in json.loads((world.folder / "train.json").read_text())
    lonely = make_world(cache_folder=folder, packages=["funcy", "webcolors"], num_train_tasks=2)
    with pytest.raises(ConfigError, match=r"has 0 of 2 train tasks.* set aside: funcy \(pip download failed"):
        lonely.tasks("train")
    monkeypatch.delenv("PIP_NO_INDEX")  # what could be had now would change the tasks of a run that goes on
    again = make_world(cache_folder=folder, packages=["simpleeval", "webcolors", "funcy"], num_train_tasks=2)
    assert again.tasks("train") == world.tasks("train")


def test_as_many_episodes_as_sandboxes_can_submit_at_the_same_time(make_world: MakeWorld) -> None:
    world = make_world()
    tasks = world.tasks("train")[:2]

    async def play(task: Task, all_are_there: asyncio.Barrier) -> StopReason | None:
        env = world.make(task)
        await env.reset()
        await all_are_there.wait()
        result = await ask_teacher(env)
        await env.close()
        return result.stop_reason

    async def run() -> list[StopReason | None]:
        all_are_there = asyncio.Barrier(len(tasks))
        async with asyncio.timeout(120), world.connected():
            return await asyncio.gather(*(play(task, all_are_there) for task in tasks))

    world._sandboxes.max_live = len(tasks)
    assert asyncio.run(run()) == [StopReason.SOLVED] * len(tasks)


def test_without_an_index_there_is_one_sentence(
    make_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConfigError, match=r"^env=pypi_bugs cannot run tests: pip install failed: .*pytest.*\.$"):
        make_world(cache_folder=tmp_path / "empty").tasks("train")


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (
            "def test_it():\n    assert webcolors.answer == 42\n",
            "1 tests fail without a bug, as tests/test_it.py::test_it",
        ),
        (
            "import pytest\n@pytest.mark.parametrize('x', [hex(id(object()))])\ndef test_it(x): pass\n",
            "other tests pass each time that it runs",
        ),
        ("import nothing_of_that_name\n", "tests/test_it.py cannot be collected: .*No module named"),
    ],
    ids=["fails", "changes", "does not import"],
)
def test_a_suite_that_cannot_judge_is_set_aside(
    make_world: MakeWorld, tmp_path: Path, cache_folder: Path, test: str, reason: str
) -> None:
    make_world().tasks("heldout")
    folder = without_tasks(cache_folder, tmp_path / "cache")
    package = listed()["webcolors"]
    place = folder / f"{package.name}-{package.version}-{package.sha256[:8]}"
    place.unlink()
    (place / "src" / "webcolors").mkdir(parents=True)
    (place / "src" / "webcolors" / "__init__.py").write_text("answer = 41\n")
    (place / "tests").mkdir()
    (place / "tests" / "test_it.py").write_text(f"import webcolors\n{test}")
    with pytest.raises(ConfigError, match=rf"has 0 of .* set aside: webcolors \({reason}"):
        make_world(cache_folder=folder).tasks("heldout")


def test_a_suite_without_end_is_over_and_says_so(make_world: MakeWorld, cache_folder: Path) -> None:
    make_world().tasks("train")
    sandboxes = BubblewrapSandboxes(run_id="tests", limits=Limits())

    async def run() -> Report:
        async with sandboxes.connected():
            suites = Suites(sandboxes, PackageCache(cache_folder).site())
            return await suites.run({"test_it.py": b"def test_it():\n    while True: pass\n"}, "endless")

    report = asyncio.run(run())
    assert not report.passed
    assert report.complaint.startswith("the tests ended with exit code")


NO_REPORTS = {
    "list": "[]",
    "nothing": "",
    "no text": "\\udcff",
    "deep": "[" * 100_000,
    "number of a test": '{"tests": {"a": 1}, "errors": {}}',
    "lists": '{"tests": ["a"], "errors": ["b"]}',
    "one word": '{"tests": {"a": ["passed"]}, "errors": {}}',
    "dict of a message": '{"tests": {"a": ["passed", {}]}, "errors": {}}',
    "large": " " * (5 << 20) + '{"tests": {"a": ["passed", ""]}, "errors": {}}',
}
FORGED = """import os
with open('report.json', 'w', errors='surrogateescape') as file:
    file.write({report})
os._exit(0)
"""


def test_a_report_that_is_none_is_the_failure_of_its_task(make_world: MakeWorld, cache_folder: Path) -> None:
    make_world().tasks("train")
    sandboxes = BubblewrapSandboxes(run_id="tests", limits=Limits())

    async def run() -> list[Report]:
        async with sandboxes.connected():
            suites = Suites(sandboxes, PackageCache(cache_folder).site())
            forged = [FORGED.format(report=compact(report)).encode() for report in NO_REPORTS.values()]
            return [await suites.run({"test_it.py": code}, "forged") for code in forged]

    for report in asyncio.run(run()):
        assert not report.passed
        assert report.complaint.startswith("the tests ended with exit code 0")


def compact(text: str) -> str:
    """Return an expression of Python that is a text, in a few letters."""
    head = text[: len(text) - len(text.lstrip(text[0]))] if len(text) > 1000 else ""
    return f"{head[:1]!r} * {len(head)} + {text[len(head) :]!r}"


def test_no_bubblewrap_is_one_sentence(make_world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(cache_folder=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs bwrap: install the package bubblewrap"):
        world.tasks("train")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"packages": ["numpy", "webcolors"]}, "env.packages: numpy is not in the list; choose among cachetools, "),
        ({"packages": ["parse"]}, "env.packages has none of the heldout split; add one of inflection, "),
        ({"num_workers": 0}, "env=pypi_bugs needs a train task, a held-out task, a worker and a turn."),
        ({"min_usable_rate": 0.0}, "env.min_usable_rate is a share above 0 and at most 1."),
    ],
)
def test_values_that_make_no_sense_are_refused(make_world: MakeWorld, values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_world(**values)
    assert str(refused.value).startswith(sentence)


def test_commands_need_a_scaffold_and_a_sandbox(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose scaffold=bash and sandbox=bubblewrap"):
        PypiBugs(cache_folder=tmp_path)


def test_a_full_disk_is_named_in_the_sandbox_and_beside_it(
    make_world: MakeWorld, tmp_path: Path, cache_folder: Path
) -> None:
    world = make_world()
    [task, *_] = world.tasks("train")
    world._sandboxes = BubblewrapSandboxes(run_id="full", limits=Limits(disk_mib=1))

    async def begin() -> None:
        async with world.connected():
            env = world.make(task)
            env._content["large"] = bytes(2 << 20)
            try:
                await env.reset()
            finally:
                await env.close()

    with pytest.raises(EnvError, match=rf"files of {task.id} cannot be written; raise sandbox\.limits\.disk_mib"):
        asyncio.run(begin())
    other = make_world(cache_folder=without_tasks(cache_folder, tmp_path / "other"))
    with largest_file(100), pytest.raises(ConfigError, match=r"cannot be written \(.*\): free space, or set another"):
        other.tasks("train")
    assert not list(other.folder.iterdir())


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let every write beyond so many bytes fail with an OSError, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
