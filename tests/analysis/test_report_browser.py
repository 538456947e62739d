"""The page of `dagger-report` in a real browser: 500 episodes, clicked, filtered and looked at."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dagger_exp.cli.report import report
from dagger_exp.store.reader import RoundFile, RoundReader
from dagger_exp.store.view import StoreView
from dagger_exp.types import Episode, Turn
from tests.analysis.test_report import make_sweep

pytestmark = pytest.mark.browser

Visit = Callable[["Page"], Coroutine[Any, Any, None]]
Browse = Callable[[Visit], None]

BUILDER = Path(__file__).parents[1] / "benchmarks" / "bench_report.py"
TIMEOUT_S = 120
LIST = """
(async () => {
  const seen = new Set();
  const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  for (let top = 0; top < list.scrollHeight; top += list.clientHeight) {
    list.scrollTop = top;
    await frame();
    for (const row of list.querySelectorAll(".row")) seen.add(Number(row.dataset.episode));
  }
  return [...seen].sort((a, b) => a - b);
})()
"""
"""All episodes of the list, which holds only the rows in sight at a time."""
THIN = """
[...document.querySelectorAll(".chart:first-child .thin")]
  .filter((path) => getComputedStyle(path).visibility === "visible").map((path) => path.dataset.group)
"""
"""The group of each thin line that is seen in the first chart."""
HIGHEST = "[...document.querySelectorAll('.chart:nth-child(3) .tick[text-anchor=end]')].at(-1).textContent"
"""The highest tick of the loss."""
CHOSEN = "document.querySelector('.row[aria-selected=true]').dataset.episode"
TIMED_CLICK = """
(async () => {
  const started = performance.now();
  document.querySelector("input[name=disagreements]").click();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return [performance.now() - started, document.querySelectorAll(".row").length];
})()
"""


class Page:
    """A page of a browser, driven over its debugging protocol.

    Attributes:
        requests: the addresses that the page asked for.
        errors: what went wrong in it, as the console shows it.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._socket, self._numbers = socket, itertools.count()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer to a command; what the page reports meanwhile is noted."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return (await self._until(lambda message: message.get("id") == number))["result"]

    async def load(self, path: Path) -> None:
        """Open a file and wait until it is there."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=path.as_uri())
        await self._until(lambda message: message.get("method") == "Page.loadEventFired")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def click(self, selector: str) -> None:
        """Click on the middle of an element, as a mouse does."""
        element = f"document.querySelector({selector!r})"
        await self.evaluate(f"{element}.scrollIntoView({{ block: 'center' }})")
        # The pointer finds what was painted last, and the page has just been scrolled.
        await self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        box = await self.evaluate(f"{element}.getBoundingClientRect().toJSON()")
        middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **middle)

    async def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that a selector finds."""
        return await self.evaluate(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)")

    async def _until(self, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            message = await self._socket.receive_json(timeout=TIMEOUT_S)
            assert "error" not in message, message
            self._note(message)
            if is_wanted(message):
                return message

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown" | "Log.entryAdded" | "Runtime.consoleAPICalled":
                self.errors.append(str(params))


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Page]:
    """Open a file in a browser of its own, which is ended afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000"]
        process = await asyncio.create_subprocess_exec(
            *(_chromium(), *switches, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with aiohttp.ClientSession() as session:
                address = await _socket(session, Path(profile) / "DevToolsActivePort")
                async with session.ws_connect(address) as socket:
                    page = Page(socket)
                    await page.load(path)
                    yield page
        finally:
            process.terminate()
            await asyncio.wait_for(process.wait(), TIMEOUT_S)


def _chromium() -> str:
    return shutil.which("chromium") or pytest.skip("no chromium on this machine")


async def _socket(session: aiohttp.ClientSession, port_file: Path) -> str:
    async with asyncio.timeout(TIMEOUT_S):
        while not (port_file.exists() and "\n" in port_file.read_text()):  # noqa: ASYNC110, ASYNC240 - not our process
            await asyncio.sleep(0.05)
    port = port_file.read_text().split()[0]  # noqa: ASYNC240 - one line
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        targets = await answer.json()
    return next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run of 500 episodes and its page."""
    _chromium()
    folder = tmp_path_factory.mktemp("browser") / "run"
    subprocess.run([sys.executable, BUILDER, "--build", folder], check=True, timeout=600)
    report([folder], None, 500)
    return folder


@pytest.fixture(scope="module")
def episodes(run_folder: Path) -> list[Episode]:
    """Give the run's episodes in the order of the page."""
    view = StoreView(run_folder / "rounds")
    files = [RoundFile(path) for path in sorted((run_folder / "eval").glob("*/episodes.parquet"))]
    readers = [view.read(*view.rounds()), RoundReader(files)]
    return [episode for reader in readers for episode in reader.episodes(range(len(reader)))]


def browsed(path: Path, visit: Visit) -> None:
    """Run a coroutine on the opened page; nothing may go wrong or be fetched meanwhile."""

    async def whole() -> None:
        async with opened(path) as page:
            await visit(page)
            assert page.errors == []
            assert {url for url in page.requests if not url.startswith("data:")} == {path.as_uri()}

    asyncio.run(whole())


@pytest.fixture
def browse(run_folder: Path) -> Browse:
    """Give a function that runs a coroutine on the opened page of the run."""
    return lambda visit: browsed(run_folder / "report.html", visit)


def differs(turn: Turn) -> bool:
    return turn.label_text is not None and turn.label_text != turn.response_text


def places(episodes: list[Episode], keep: Callable[[Episode], bool]) -> list[int]:
    return [place for place, episode in enumerate(episodes) if keep(episode)]


def test_filters_leave_exactly_the_episodes_they_name(browse: Browse, episodes: list[Episode]) -> None:
    assert len(episodes) == 500
    assert sum(len(episode.turns) for episode in episodes) >= 10_000
    disagreements = places(episodes, lambda episode: any(map(differs, episode.turns)))
    failures = places(episodes, lambda episode: not episode.solved)
    assert 0 < len(disagreements) < 500
    assert 0 < len(failures) < 500

    async def visit(page: Page) -> None:
        assert await page.evaluate(LIST) == list(range(500))
        await page.click("input[name=disagreements]")
        assert await page.evaluate(LIST) == disagreements
        assert await page.texts("#count") == [f"{len(disagreements)} of 500 episodes"]
        await page.click("input[name=failures]")
        assert await page.evaluate(LIST) == sorted({*disagreements} & {*failures})
        await page.click("input[name=disagreements]")
        assert await page.evaluate(LIST) == failures

    browse(visit)


def test_a_click_shows_the_turns_of_an_episode(browse: Browse, episodes: list[Episode]) -> None:
    place = places(episodes, lambda e: any(map(differs, e.turns)) and not all(t.actor == "student" for t in e.turns))[0]
    turns = episodes[place].turns
    differing = [index for index, turn in enumerate(turns) if differs(turn)]

    async def visit(page: Page) -> None:
        await page.evaluate(f"document.getElementById('list').scrollTop = {place} * 56 - 100")
        row = f".row[data-episode='{place}']"
        seen = f"document.querySelector(`{row}`)"  # rows are drawn as they are scrolled to, whenever that is
        await page.evaluate(
            f"new Promise((done) => {{ (function look() {{ {seen} ? done() : setTimeout(look); }})() }})"
        )
        await page.click(row)
        assert await page.evaluate(CHOSEN) == str(place)
        assert await page.texts(".turn .who b") == [turn.actor.value[0].upper() for turn in turns]
        assert await page.texts(".turn .action pre") == [turn.response_text for turn in turns]
        assert await page.texts(".turn .label pre") == [turns[index].label_text for index in differing]
        marked = "[...document.querySelectorAll('.turn')].flatMap((e, i) => e.matches('.differs') ? [i] : [])"
        assert await page.evaluate(marked) == differing

    browse(visit)


def test_an_observation_unfolds_on_a_click(browse: Browse, episodes: list[Episode]) -> None:
    folded = next(turn.observation for turn in episodes[0].turns if "\n" in turn.observation)

    async def visit(page: Page) -> None:
        is_seen = "document.querySelector('details.observation > pre').checkVisibility()"
        assert not await page.evaluate(is_seen)
        assert (await page.texts("details.observation .first"))[0] == folded.splitlines()[0]
        await page.click("details.observation summary")
        assert await page.evaluate(is_seen)
        assert (await page.texts("details.observation > pre"))[0] == folded

    browse(visit)


def test_arrow_keys_and_the_search_go_through_the_list(browse: Browse, episodes: list[Episode]) -> None:
    task = episodes[321].task_id
    found = places(episodes, lambda episode: task in episode.task_id)

    async def visit(page: Page) -> None:
        await page.click("#list .row")
        for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
            await page.call("Input.dispatchKeyEvent", type="rawKeyDown", key=key)
        assert await page.evaluate(CHOSEN) == "1"
        await page.click("input[name=query]")
        await page.call("Input.insertText", text=task.upper())
        assert await page.evaluate(LIST) == found
        assert await page.texts(".episode h3 mark") == [task]

    browse(visit)


def test_choices_of_phase_round_and_actor(browse: Browse, episodes: list[Episode]) -> None:
    by_teacher = places(episodes, lambda episode: any(turn.actor == "teacher" for turn in episode.turns))

    async def choose(page: Page, name: str, value: str) -> None:
        await page.evaluate(f"form.elements.{name}.value = {value!r}, form.dispatchEvent(new Event('input'))")

    async def visit(page: Page) -> None:
        await choose(page, "actor", "T")
        assert await page.evaluate(LIST) == by_teacher
        await choose(page, "round", "2")
        assert await page.evaluate(LIST) == [place for place in by_teacher if 120 <= place < 180]
        await choose(page, "actor", "")
        await choose(page, "phase", "evaluate")
        assert await page.evaluate(LIST) == list(range(380, 420))

    browse(visit)


def test_values_are_shown_under_the_pointer(browse: Browse) -> None:
    async def visit(page: Page) -> None:
        box = await page.evaluate("document.querySelector('.chart svg').getBoundingClientRect().toJSON()")
        x, y = box["right"] - 20, box["y"] + 80
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        assert await page.texts(".chart:first-child .tip") == ["round 480.0 % (72.0 % to 88.0 %)"]

    browse(visit)


def test_how_long_a_filter_takes(browse: Browse, capsys: pytest.CaptureFixture[str]) -> None:
    async def visit(page: Page) -> None:
        milliseconds, num_rows = await page.evaluate(TIMED_CLICK)
        with capsys.disabled():
            print(f"\na filter over 500 episodes is painted after {milliseconds:.0f} ms")  # noqa: T201 - a figure
        assert 0 < num_rows < 100  # the rest of the list is not in the document

    browse(visit)


def test_the_single_runs_of_a_group_are_seen_where_it_is_pointed_at(tmp_path: Path) -> None:
    _chromium()
    make_sweep(tmp_path, num_seeds=7)
    report([tmp_path], None, 500)

    async def point_at(page: Page, x: float, y: float) -> None:
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def visit(page: Page) -> None:
        assert await page.texts("#legend button") == ["schedule=cosine", "schedule=inverse_sigmoid"]
        assert await page.evaluate("document.querySelectorAll('.chart:first-child .line:not(.thin)').length") == 2
        assert await page.evaluate(THIN) == []
        assert await page.evaluate(HIGHEST) == "0.8"  # of the means; the highest of the single runs is 1.1
        box = await page.evaluate("document.querySelector('#legend button').getBoundingClientRect().toJSON()")
        await point_at(page, box["x"] + 5, box["y"] + 5)
        assert await page.evaluate(THIN) == ["0"] * 7
        assert await page.evaluate(HIGHEST) == "1.5"
        await point_at(page, 1, 1)
        assert await page.evaluate(THIN) == []
        await page.click("#legend button:nth-child(2)")
        await point_at(page, 1, 1)
        assert await page.evaluate(THIN) == ["1"] * 7
        assert not await page.evaluate("document.documentElement.scrollWidth > innerWidth")
        tables = "[...document.querySelectorAll('header .scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
        assert await page.evaluate(f"document.querySelectorAll('details').forEach((e) => e.open = true), {tables}") == 0

    browsed(tmp_path / "report.html", visit)


def test_few_runs_are_thin_lines_from_the_start(tmp_path: Path) -> None:
    _chromium()
    make_sweep(tmp_path)
    report([tmp_path], None, 500)

    async def visit(page: Page) -> None:
        assert await page.evaluate(THIN) == ["0"] * 3 + ["1"] * 3

    browsed(tmp_path / "report.html", visit)
