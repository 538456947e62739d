// Curves as inline SVG: one line per group, a band where there is an interval, values under the pointer. The single runs
// of a group are thin lines; where there are many of them, only those of the group that is pointed at or picked.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 12, right: 14, bottom: 30, left: 46 };
const HEIGHT = 210;
const NUM_COLOURS = 7;
const MAX_TIP_LINES = 12;
const MAX_THIN_LINES = 12; // more runs at once are a tangle
const MAX_BANDS = 4; // of more groups they are fainter, for they lie on each other
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

/** A group's look: seven colours that most eyes tell apart, then other dashes and marks. */
const colourOf = (group) => `colour-${group % NUM_COLOURS}`;
const dashOf = (group) => DASHES[Math.floor(group / NUM_COLOURS) % DASHES.length];

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

/** The points of a metric in rows, those without it left out. */
function points(rows, key) {
  const stem = key.replace(/_rate$/, "");
  return rows
    .filter((row) => row[key] != null)
    .map((row) => ({ x: row.round, y: row[key], low: row[`${stem}_low`], high: row[`${stem}_high`] }));
}

/** A metric's line for each group; `thin` holds those of its single runs. */
function series(key, { groups, runs }, look = {}) {
  return groups.map((group, index) => ({
    ...look,
    group: index,
    points: points(group.rows, key),
    thin: group.runs.length > 1 ? group.runs.map((run) => points(runs[run].rows, key)) : [],
  }));
}

function charts(data) {
  const rate = { max: 1, format: percent };
  return [
    { title: "Success", note: "evaluation, with its 95 % interval", ...rate, series: series("eval/success_rate", data) },
    { title: "Schedule", note: "solid: turns by the student; dashed: beta", ...rate,
      series: [
        ...series("rollout/student_turn_rate", data, { name: "student turns" }),
        ...series("round/beta", data, { name: "beta", dashed: true }),
      ] },
    { title: "Loss", note: "mean of each round", format: (v) => v.toPrecision(3), series: series("round/loss", data) },
    { title: "Labels", note: "in all, up to each round", format: (v) => Math.round(v).toLocaleString("en"),
      series: series("rollout/num_labels", data) },
  ];
}

/** Draw a chart in a figure; `thinOf` gives those single runs of a line that are seen, and the axes have room for no other. */
function drawChart(figure, chart, groups, thinOf) {
  const width = Math.max(240, figure.clientWidth);
  const all = chart.series.flatMap((line) => [line.points, ...thinOf(line)]).flat();
  figure.querySelector("svg")?.remove();
  if (!all.length) return;
  const lastRound = Math.max(1, ...all.map((p) => p.x));
  const yTicks = ticks(chart.max ?? Math.max(1e-9, ...all.map((p) => p.y)), 4);
  const x = (v) => MARGIN.left + (v / lastRound) * (width - MARGIN.left - MARGIN.right);
  const y = (v) => HEIGHT - MARGIN.bottom - (v / yTicks.at(-1)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const picture = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": `${chart.title} by round` });
  drawAxes(picture, { x, y, width, lastRound, yTicks, isRate: chart.max === 1 });
  for (const line of chart.series) drawBand(picture, line, x, (v) => y(Math.min(yTicks.at(-1), Math.max(0, v))));
  for (const line of chart.series) drawThin(picture, line, thinOf(line), x, y);
  for (const line of chart.series) drawLine(picture, line, x, y);
  figure.append(picture);
  followPointer(figure, picture, chart, groups, { x, lastRound });
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
  picture.append(svg("path", { class: `band ${colourOf(line.group)}`, d, "data-group": line.group }));
}

const through = (points, x, y) => `M${points.map((p) => `${x(p.x)},${y(p.y)}`).join("L")}`;
const dashing = (line) => (line.dashed ? "5 4" : dashOf(line.group));

function drawThin(picture, line, thin, x, y) {
  const look = { class: `line thin ${colourOf(line.group)}`, "stroke-dasharray": dashing(line), "data-group": line.group };
  const drawn = thin.filter((points) => points.length);
  picture.append(...drawn.map((points) => svg("path", { ...look, d: through(points, x, y) })));
}

function drawLine(picture, line, x, y) {
  if (!line.points.length) return;
  const marks = line.points.map((p) => mark(line.group, x(p.x), y(p.y))).join("");
  const look = colourOf(line.group) + (line.dashed ? " hollow" : "");
  const group = { "data-group": line.group };
  picture.append(
    svg("path", { ...group, class: `line ${look}`, d: through(line.points, x, y), "stroke-dasharray": dashing(line) }),
    svg("path", { ...group, class: `mark ${look}`, d: marks }),
  );
}

function followPointer(figure, picture, chart, groups, { x, lastRound }) {
  const guide = picture.querySelector(".guide");
  const tip = figure.querySelector(".tip");
  picture.addEventListener("pointermove", (event) => {
    const at = event.clientX - picture.getBoundingClientRect().left;
    const round = Math.min(lastRound, Math.max(0, Math.round(((at - x(0)) / (x(lastRound) - x(0))) * lastRound)));
    const lines = valuesAt(chart, groups, round);
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

function valuesAt(chart, groups, round) {
  return chart.series.flatMap((line) => {
    const point = line.points.find((p) => p.x === round);
    if (!point) return [];
    const interval = point.low == null ? "" : ` (${chart.format(point.low)} to ${chart.format(point.high)})`;
    const name = [groups.length > 1 ? groups[line.group].label : "", line.name ?? ""].filter(Boolean).join(", ");
    const value = element("span", "", element("b", "", chart.format(point.y)), element("span", "quiet", interval));
    return [element("span", "value", element("span", "", swatch(line.group), name), value)];
  });
}

/** A short piece of a group's line, to stand before its name. */
function swatch(group) {
  const picture = svg("svg", { class: "swatch", width: 24, height: 10, "aria-hidden": "true" },
    svg("path", { class: `line ${colourOf(group)}`, d: "M1,5H23", "stroke-dasharray": dashOf(group) }),
    svg("path", { class: `mark ${colourOf(group)}`, d: mark(group, 12, 5) }));
  return picture;
}

/** The names of the groups: one that is pointed at stands out in the curves, and a click keeps it so. */
function fillLegend(groups, stress) {
  let picked = -1;
  const names = groups.map(({ label }, group) => {
    const name = element("button", "", swatch(group), label);
    name.type = "button";
    for (const [kind, shown] of [["pointerenter", () => group], ["pointerleave", () => picked]]) {
      name.addEventListener(kind, () => stress(shown()));
    }
    name.addEventListener("click", () => {
      picked = picked === group ? -1 : group;
      names.forEach((other, index) => other.setAttribute("aria-pressed", String(index === picked)));
      stress(picked);
    });
    return name;
  });
  document.getElementById("legend").append(...names);
  return () => stress(picked);
}

function showCharts({ groups, runs }) {
  const made = charts({ groups, runs }).map((chart) => {
    const tip = element("div", "tip");
    tip.hidden = true;
    const caption = element("figcaption", "", element("b", "", chart.title), " ", element("span", "quiet", chart.note));
    const figure = element("figure", "chart", caption, tip);
    if (!chart.series.some((line) => line.points.length)) figure.append(element("p", "quiet empty", "no figures in summary.json"));
    return { figure, chart };
  });
  const curves = document.getElementById("curves");
  curves.classList.toggle("many-groups", groups.length > MAX_BANDS);
  curves.append(...made.map(({ figure }) => figure));
  const draw = (stressed) => {
    const thinOf = (line) => (runs.length > MAX_THIN_LINES && line.group !== stressed ? [] : line.thin);
    made.forEach(({ figure, chart }) => drawChart(figure, chart, groups, thinOf));
    curves.classList.toggle("picking", stressed >= 0);
    for (const path of curves.querySelectorAll("[data-group]")) path.classList.toggle("picked", Number(path.dataset.group) === stressed);
  };
  const redraw = groups.length > 1 ? fillLegend(groups, draw) : () => draw(-1);
  if (runs.length > 1) {
    for (const place of document.querySelectorAll("span.swatch")) place.append(swatch(Number(place.dataset.group)));
  }
  redraw();
  let width = innerWidth;
  addEventListener("resize", () => innerWidth !== width && ((width = innerWidth), redraw()));
}
