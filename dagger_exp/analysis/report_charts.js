// Curves as inline SVG: one line per run, a band where there is an interval, values under the pointer.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 12, right: 14, bottom: 30, left: 46 };
const HEIGHT = 210;
const NUM_COLOURS = 7;
const MAX_TIP_LINES = 12;
const DASHES = ["", "7 3", "2 3"];

/** Make an HTML element; children are elements or texts, and a text stays a text. */
function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A run's look: seven colours that most eyes tell apart, then other dashes and marks. */
const colourOf = (run) => `colour-${run % NUM_COLOURS}`;
const dashOf = (run) => DASHES[Math.floor(run / NUM_COLOURS) % DASHES.length];

/** Path of a mark around (x, y): circle, square, triangle or diamond. */
function mark(shape, x, y, r = 3.2) {
  if (shape % 4 === 1) return `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`;
  if (shape % 4 === 2) return `M${x},${y - r * 1.3}l${r * 1.2},${r * 2.2}h${-r * 2.4}z`;
  if (shape % 4 === 3) return `M${x},${y - r * 1.4}l${r * 1.4},${r * 1.4}l${-r * 1.4},${r * 1.4}l${-r * 1.4},${-r * 1.4}z`;
  return `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0`;
}

/** Round numbers from 0 to at least `max`, about `count` of them. */
function ticks(max, count, smallest = 0) {
  const rough = Math.max(max / count, smallest, 1e-9);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough && (!smallest || Number.isInteger(s)));
  return Array.from({ length: Math.ceil(max / step - 1e-9) + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

const percent = (value) => `${(100 * value).toFixed(value === 0 || value === 1 ? 0 : 1)} %`;
const short = (value) => (value >= 10000 ? `${value / 1000}k` : String(value));

/** The points of a metric in a run's rows, those without it left out; `running` adds them up. */
function points(rows, key, { low, high, running } = {}) {
  let sum = 0;
  return rows
    .filter((row) => row[key] != null)
    .map((row) => ({ x: row.round, y: running ? (sum += row[key]) : row[key], low: row[low], high: row[high] }));
}

function charts(runs) {
  const each = (make) => runs.flatMap((run, index) => make(run.rows, index));
  const series = (key, options) => each((rows, run) => [{ run, points: points(rows, key, options) }]);
  const rate = { max: 1, format: percent };
  return [
    { title: "Success", note: "evaluation, with its 95 % interval", ...rate,
      series: series("eval/success_rate", { low: "eval/success_low", high: "eval/success_high" }) },
    { title: "Schedule", note: "solid: turns by the student; dashed: beta", ...rate,
      series: each((rows, run) => [
        { run, name: "student turns", points: points(rows, "rollout/student_turn_rate") },
        { run, name: "beta", dashed: true, points: points(rows, "round/beta") },
      ]) },
    { title: "Loss", note: "mean of each round", format: (v) => v.toPrecision(3), series: series("round/loss") },
    { title: "Labels", note: "in all, up to each round", format: (v) => v.toLocaleString("en"),
      series: series("rollout/num_labels", { running: true }) },
  ];
}

function drawChart(figure, chart, runs) {
  const width = Math.max(240, figure.clientWidth);
  const all = chart.series.flatMap((line) => line.points);
  figure.querySelector("svg")?.remove();
  if (!all.length) return;
  const lastRound = Math.max(1, ...all.map((p) => p.x));
  const yTicks = ticks(chart.max ?? Math.max(1e-9, ...all.map((p) => p.y)), 4);
  const x = (v) => MARGIN.left + (v / lastRound) * (width - MARGIN.left - MARGIN.right);
  const y = (v) => HEIGHT - MARGIN.bottom - (v / yTicks.at(-1)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const picture = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": `${chart.title} by round` });
  drawAxes(picture, { x, y, width, lastRound, yTicks, isRate: chart.max === 1 });
  for (const line of chart.series) drawBand(picture, line, x, y);
  for (const line of chart.series) drawLine(picture, line, x, y);
  figure.append(picture);
  followPointer(figure, picture, chart, runs, { x, lastRound });
}

function drawAxes(picture, { x, y, width, lastRound, yTicks, isRate }) {
  for (const tick of yTicks) {
    picture.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" },
        isRate ? `${Math.round(100 * tick)}%` : short(tick)),
    );
  }
  for (const tick of ticks(lastRound, Math.min(10, width / 50), 1).filter((t) => t <= lastRound)) {
    picture.append(svg("text", { class: "tick", x: x(tick), y: HEIGHT - 12, "text-anchor": "middle" }, tick));
  }
  picture.append(svg("line", { class: "guide", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" }));
}

function drawBand(picture, line, x, y) {
  const within = line.points.filter((p) => p.low != null && p.high != null);
  if (!within.length) return;
  if (within.length === 1) within.push({ ...within[0], x: within[0].x + 0.02 });
  const corners = [...within.map((p) => [p.x, p.high]), ...within.toReversed().map((p) => [p.x, p.low])];
  const d = `M${corners.map(([a, b]) => `${x(a)},${y(b)}`).join("L")}Z`;
  picture.append(svg("path", { class: `band ${colourOf(line.run)}`, d }));
}

function drawLine(picture, line, x, y) {
  if (!line.points.length) return;
  const path = `M${line.points.map((p) => `${x(p.x)},${y(p.y)}`).join("L")}`;
  const marks = line.points.map((p) => mark(line.run, x(p.x), y(p.y))).join("");
  const look = colourOf(line.run) + (line.dashed ? " hollow" : "");
  const dash = line.dashed ? "5 4" : dashOf(line.run);
  picture.append(
    svg("path", { class: `line ${look}`, d: path, "stroke-dasharray": dash }),
    svg("path", { class: `mark ${look}`, d: marks }),
  );
}

function followPointer(figure, picture, chart, runs, { x, lastRound }) {
  const guide = picture.querySelector(".guide");
  const tip = figure.querySelector(".tip");
  picture.addEventListener("pointermove", (event) => {
    const at = event.clientX - picture.getBoundingClientRect().left;
    const round = Math.min(lastRound, Math.max(0, Math.round(((at - x(0)) / (x(lastRound) - x(0))) * lastRound)));
    const lines = valuesAt(chart, runs, round);
    const more = lines.length > MAX_TIP_LINES ? [element("span", "quiet", `and ${lines.length - MAX_TIP_LINES} more`)] : [];
    tip.replaceChildren(element("b", "", `round ${round}`), ...lines.slice(0, MAX_TIP_LINES), ...more);
    tip.hidden = !lines.length;
    guide.setAttribute("visibility", lines.length ? "visible" : "hidden");
    guide.setAttribute("x1", x(round));
    guide.setAttribute("x2", x(round));
    place(tip, picture.getBoundingClientRect(), x(round));
  });
  picture.addEventListener("pointerleave", () => {
    tip.hidden = true;
    guide.setAttribute("visibility", "hidden");
  });
}

/** Put the values beside the guide, on the side where the window has room for them. */
function place(tip, box, x) {
  const right = box.left + x + 14;
  const left = right + tip.offsetWidth < innerWidth ? right : box.left + x - 14 - tip.offsetWidth;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(box.top + 8, innerHeight - tip.offsetHeight - 4))}px`;
}

function valuesAt(chart, runs, round) {
  return chart.series.flatMap((line) => {
    const point = line.points.find((p) => p.x === round);
    if (!point) return [];
    const interval = point.low == null ? "" : ` (${percent(point.low)} to ${percent(point.high)})`;
    const name = [runs.length > 1 ? runs[line.run].name : "", line.name ?? ""].filter(Boolean).join(", ");
    const value = element("span", "", element("b", "", chart.format(point.y)), element("span", "quiet", interval));
    return [element("span", "value", element("span", "", swatch(line.run), name), value)];
  });
}

/** A short piece of a run's line, to stand before its name. */
function swatch(run) {
  const picture = svg("svg", { class: "swatch", width: 24, height: 10, "aria-hidden": "true" },
    svg("path", { class: `line ${colourOf(run)}`, d: "M1,5H23", "stroke-dasharray": dashOf(run) }),
    svg("path", { class: `mark ${colourOf(run)}`, d: mark(run, 12, 5) }));
  return picture;
}

function showCharts(runs) {
  const made = charts(runs).map((chart) => {
    const tip = element("div", "tip");
    tip.hidden = true;
    const caption = element("figcaption", "", element("b", "", chart.title), " ", element("span", "quiet", chart.note));
    const figure = element("figure", "chart", caption, tip);
    if (!chart.series.some((line) => line.points.length)) figure.append(element("p", "quiet empty", "no figures in summary.json"));
    return { figure, chart };
  });
  document.getElementById("curves").append(...made.map(({ figure }) => figure));
  if (runs.length > 1) {
    const names = runs.map((run, index) => element("span", "", swatch(index), run.name));
    document.getElementById("legend").append(...names);
    for (const place of document.querySelectorAll("span.swatch")) place.append(swatch(Number(place.dataset.run)));
  }
  const redraw = () => made.forEach(({ figure, chart }) => drawChart(figure, chart, runs));
  redraw();
  let width = innerWidth;
  addEventListener("resize", () => innerWidth !== width && ((width = innerWidth), redraw()));
}
