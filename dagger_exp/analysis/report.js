// The episode browser. Texts of a run are inserted as texts only: an observation may hold anything.

const DATA = JSON.parse(document.getElementById("data").textContent);
const { texts, episodes, turns } = DATA;
const NUM_EPISODES = episodes.run?.length ?? 0;
const IS_SINGLE = DATA.runs.length === 1;
const groupOf = DATA.runs.map((_, run) => DATA.groups.findIndex((group) => group.runs.includes(run)));
const ROW_HEIGHT = IS_SINGLE ? 56 : 76; // pixels; the third line names the run
const ACTORS = { S: "student", T: "teacher", R: "replay" };
const PHASES = { collect: "collected", evaluate: "evaluation" };

const form = document.getElementById("filters");
const list = document.getElementById("list");
const rows = document.getElementById("rows");
const panel = document.getElementById("episode");

const lastTurn = (episode) => (episode + 1 < NUM_EPISODES ? episodes.first_turn[episode + 1] : turns.actor.length);
const differs = (turn) => turns.label[turn] !== null && turns.label[turn] !== turns.action[turn];
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function turnsOf(episode) {
  const first = episodes.first_turn[episode];
  return Array.from({ length: lastTurn(episode) - first }, (_, index) => first + index);
}

/** What the list and the filters ask of every episode, counted once. */
const facts = Array.from({ length: NUM_EPISODES }, (_, episode) => {
  const all = turnsOf(episode);
  return {
    numTurns: all.length,
    numLabels: all.filter((turn) => turns.label[turn] !== null).length,
    numDiffering: all.filter(differs).length,
    actors: new Set(all.map((turn) => turns.actor[turn])),
  };
});

let visible = []; // the episodes that pass the filters
let chosen = -1; // the one that is shown, -1 if none
let query = "";
let lowered = null; // all texts in lower case, made by the first search

// ---- filters

function fillSelects() {
  const fill = (name, values, say) => {
    const options = values.map((value) => Object.assign(element("option", "", say(value)), { value }));
    form.elements[name].append(...options);
  };
  const distinct = (values) => [...new Set(values)];
  fill("run", DATA.runs.map((_, index) => index), (run) => DATA.runs[run].name);
  fill("phase", distinct(episodes.phase ?? []), (phase) => PHASES[phase]);
  fill("round", distinct(episodes.round ?? []).sort((a, b) => a - b), String);
  fill("actor", Object.keys(ACTORS).filter((actor) => facts.some((fact) => fact.actors.has(actor))), (actor) => ACTORS[actor]);
  form.elements.run.parentElement.hidden = IS_SINGLE;
}

function applyFilters() {
  const asked = Object.fromEntries(new FormData(form));
  query = asked.query.trim().toLowerCase();
  const hits = query ? (lowered ??= texts.map((text) => text.toLowerCase())).map((text) => text.includes(query)) : null;
  visible = facts.map((_, episode) => episode).filter((episode) => passes(episode, asked, hits));
  document.getElementById("count").textContent = `${visible.length} of ${plural(NUM_EPISODES, "episode")}`;
  list.scrollTop = 0;
  choose(visible.includes(chosen) ? chosen : (visible[0] ?? -1));
}

function passes(episode, asked, hits) {
  const fact = facts[episode];
  return (
    (asked.run === "" || episodes.run[episode] === Number(asked.run)) &&
    (asked.phase === "" || episodes.phase[episode] === asked.phase) &&
    (asked.round === "" || episodes.round[episode] === Number(asked.round)) &&
    (asked.actor === "" || fact.actors.has(asked.actor)) &&
    (!asked.disagreements || fact.numDiffering > 0) &&
    (!asked.failures || episodes.stop_reason[episode] !== "solved") &&
    (!hits || isHit(episode, hits))
  );
}

function isHit(episode, hits) {
  if (hits[episodes.task[episode]]) return true;
  for (let turn = episodes.first_turn[episode]; turn < lastTurn(episode); turn++) {
    if (hits[turns.observation[turn]] || hits[turns.action[turn]] || hits[turns.label[turn]]) return true;
  }
  return false;
}

// ---- the list: only the rows in sight are in the document

function drawList() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 5);
  const end = Math.min(visible.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + 5);
  rows.style.height = `${visible.length * ROW_HEIGHT}px`;
  rows.replaceChildren(...visible.slice(first, end).map((episode, index) => row(episode, first + index)));
  if (!visible.length) rows.append(element("p", "quiet empty", "No episode passes these filters."));
}

function row(episode, place) {
  const { numTurns, numDiffering } = facts[episode];
  const where = [`round ${episodes.round[episode]}`, PHASES[episodes.phase[episode]], `#${episodes.episode[episode]}`];
  const made = element("div", "row",
    element("span", "task", texts[episodes.task[episode]]), stopReason(episode),
    element("span", "where", where.join(" · ")),
    element("span", "counts", plural(numTurns, "turn"), ...(numDiffering ? [element("b", "", `≠ ${numDiffering}`)] : [])));
  made.id = `row-${episode}`;
  made.style.top = `${place * ROW_HEIGHT}px`;
  made.dataset.episode = episode;
  made.style.height = `${ROW_HEIGHT}px`;
  if (!IS_SINGLE) made.append(element("span", "run", swatch(groupOf[episodes.run[episode]]), DATA.runs[episodes.run[episode]].name));
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", String(episode === chosen));
  made.setAttribute("aria-setsize", visible.length);
  made.setAttribute("aria-posinset", place + 1);
  return made;
}

function stopReason(episode) {
  const reason = episodes.stop_reason[episode];
  if (DATA.infrastructure.includes(reason)) return element("span", "stop infrastructure", `${reason} †`);
  return element("span", `stop ${reason === "solved" ? "solved" : "unsolved"}`, reason);
}

function choose(episode) {
  const isNew = episode !== chosen || query;
  chosen = episode;
  const place = visible.indexOf(episode);
  if (place >= 0) {
    const top = place * ROW_HEIGHT;
    list.scrollTop = Math.min(Math.max(list.scrollTop, top + ROW_HEIGHT - list.clientHeight), top);
    list.setAttribute("aria-activedescendant", `row-${episode}`);
  }
  drawList();
  if (isNew || !panel.childElementCount) drawEpisode();
}

function move(by) {
  const place = visible.indexOf(chosen) + by;
  if (place >= 0 && place < visible.length) choose(visible[place]);
}

// ---- the chosen episode

function drawEpisode() {
  panel.scrollTop = 0;
  if (chosen < 0) {
    panel.replaceChildren(element("p", "quiet empty", NUM_EPISODES ? "No episode is chosen." : "No episode is in this page."));
    return;
  }
  const all = turnsOf(chosen);
  const first = episodes.first_turn[chosen];
  const cards = all.map((turn) => turnCard(turn, turn - first));
  const strip = element("div", "strip", ...all.map((turn, index) => stripCell(turn, index, cards[index])));
  panel.replaceChildren(episodeHead(chosen), strip, element("ol", "turns", ...cards));
}

function episodeHead(episode) {
  const { numTurns, numLabels, numDiffering } = facts[episode];
  const about = [
    ...(IS_SINGLE ? [] : [DATA.runs[episodes.run[episode]].name]),
    `round ${episodes.round[episode]}`, PHASES[episodes.phase[episode]], `episode ${episodes.episode[episode]}`,
    plural(numTurns, "turn"),
    numLabels ? `${plural(numLabels, "label")}, ${numDiffering || "none"} of them differing` : "no labels",
  ];
  const error = texts[episodes.error[episode]];
  return element("header", "",
    element("h3", "", marked(texts[episodes.task[episode]]), " ", stopReason(episode)),
    element("p", "quiet", about.join(" · ")),
    ...(error ? [element("p", "note failed", error)] : []));
}

function stripCell(turn, index, card) {
  const actor = turns.actor[turn];
  const cell = element("button", `cell actor-${actor}${differs(turn) ? " differs" : ""}`, actor);
  cell.type = "button";
  cell.title = `turn ${index}, ${ACTORS[actor]}${differs(turn) ? ", the label differs" : ""}`;
  cell.addEventListener("click", () => card.scrollIntoView({ block: "nearest" }));
  return cell;
}

function turnCard(turn, index) {
  const actor = turns.actor[turn];
  const actedBy = element("span", `who actor-${actor}`, element("b", "", actor), ` ${ACTORS[actor]}`);
  const head = element("div", "turn-head", actedBy, element("span", "quiet", `turn ${index}`), ...badges(turn), odds(turn));
  const card = element("li", `turn actor-${actor}${differs(turn) ? " differs" : ""}`,
    head, observation(texts[turns.observation[turn]]), said("action", "action", texts[turns.action[turn]]));
  if (differs(turn)) card.append(said("label", "≠ label", texts[turns.label[turn]]));
  return card;
}

function badges(turn) {
  const finish = texts[turns.finish_reason[turn]];
  const made = [];
  if (!turns.valid[turn]) made.push(element("span", "badge malformed", "malformed"));
  if (turns.action_error[turn]) made.push(element("span", "badge malformed", `${turns.action_error[turn]} error`));
  if (differs(turn)) made.push(element("span", "badge differing", "label differs"));
  if (turns.label[turn] === null && facts[chosen].numLabels) made.push(element("span", "badge", "no label"));
  if (finish !== "stop") made.push(element("span", "badge", finish));
  if (turns.reward[turn]) made.push(element("span", "badge", `reward ${turns.reward[turn]}`));
  return made;
}

/** The numbers that decided who acts, as far as the mixing has them. */
function odds(turn) {
  const of = (name, digits) => (turns[name][turn] === null ? [] : [`${name} ${turns[name][turn].toFixed(digits)}`]);
  return element("span", "odds", [...of("coin", 3), ...of("beta", 3), ...of("kappa", 0)].join(" · "));
}

function said(className, title, text) {
  const body = text ? element("pre", "", marked(text)) : element("pre", "quiet", "(empty)");
  return element("div", `said ${className}`, element("span", "what", title), body);
}

/** An observation, folded to its first line if it has more. */
function observation(text) {
  const lines = text.trimEnd().split("\n");
  if (lines.length === 1 && text.length < 160) return said("observation", "observation", text);
  const firstLine = lines.find((line) => line.trim()) ?? "";
  const more = lines.length > 1 ? `+ ${plural(lines.length - 1, "line")}` : `${text.length.toLocaleString("en")} characters`;
  const summary = element("summary", "", element("span", "what", "observation"),
    element("span", "first", marked(firstLine.slice(0, 300))), element("span", "more", more));
  const details = element("details", "said observation", summary, element("pre", "", marked(text)));
  details.open = Boolean(query) && text.toLowerCase().includes(query);
  return details;
}

/** A text as nodes, with what was searched for marked. */
function marked(text) {
  const nodes = document.createDocumentFragment();
  const lower = query ? text.toLowerCase() : "";
  // A letter may change its length in lower case, and then places do not correspond.
  if (!query || lower.length !== text.length) {
    nodes.append(text);
    return nodes;
  }
  let from = 0;
  for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, from)) {
    nodes.append(text.slice(from, at), element("mark", "", text.slice(at, at + query.length)));
    from = at + query.length;
  }
  nodes.append(text.slice(from));
  return nodes;
}

// ---- what the reader does

form.addEventListener("input", applyFilters);
form.addEventListener("submit", (event) => event.preventDefault());
list.addEventListener("scroll", drawList, { passive: true });
list.addEventListener("click", (event) => {
  // By place, because scrolling may put a new row under the pointer between its press and its release.
  const place = Math.floor((event.clientY - rows.getBoundingClientRect().top) / ROW_HEIGHT);
  if (visible[place] !== undefined) choose(visible[place]);
});
document.getElementById("browser").addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!by || event.target.tagName === "SELECT" || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  move(by);
});
addEventListener("resize", drawList);

showCharts(DATA);
fillSelects();
applyFilters();
