// Shared by all charts: state, number formats, theme colours, drawing and redrawing.

const state = {
  layer: 0,
  plan: 0,
  expert: null, // the one that was searched for
  compare: true,
  expertOrder: "load",
  coactivationValue: "lift",
  coactivationOrder: "blocks",
  balanceOf: "each",
  windowsOf: "mean",
};
let page = null; // the unpacked payload

const byId = (id) => document.getElementById(id);

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
}

// Plotly interprets some HTML in texts; names from files are escaped.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// The name of a plan in a chart: the middle of a long one is left out.
function chartName({ name }) {
  const most = isNarrow() ? 28 : 48;
  const half = Math.floor((most - 1) / 2);
  return plain(name.length <= most ? name : `${name.slice(0, half)}\u2026${name.slice(-half)}`);
}

function tokens(number) {
  return number.toLocaleString("en-US", { maximumFractionDigits: number < 100 ? 2 : 0 });
}

function times(number) {
  return Number.isFinite(number) ? `${number.toPrecision(Math.abs(number) >= 1000 ? 5 : 4)}\u00d7` : "\u2013";
}

function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = number > 0 ? Math.min(4, Math.floor(Math.log10(number) / 3)) : 0;
  return `${(number / 1000 ** power).toPrecision(4)} ${units[power]}`;
}

// A metric: integers in full, other numbers with six digits.
function metric(number) {
  return Number.isInteger(number) ? String(number) : String(Number(number.toPrecision(6)));
}

function layerName(layer) {
  const ids = page.model.moe_layer_ids;
  return ids && ids[layer] !== layer ? `${layer} (${ids[layer]} in the model)` : `${layer}`;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Blue below 1, neutral at 1, orange above: distinguishable for colour-blind readers, and by lightness.
function aroundOne() {
  return [[0, colour("below")], [0.5, colour("middle")], [1, colour("above")]];
}

// Ticks of a log2 scale around 1, which has the neutral colour.
function factorBar(title, reach) {
  const powers = Array.from({ length: 2 * reach + 1 }, (_, i) => i - reach);
  const labels = powers.map((p) => (p < 0 ? `1/${2 ** -p}` : `${2 ** p}`));
  labels[0] = `\u2264 ${labels[0]}`;
  labels[labels.length - 1] = `\u2265 ${labels[labels.length - 1]}`;
  return colourBar(title, { tickvals: powers, ticktext: labels });
}

// The smallest integer, at most `most`, that exceeds 99.8 % of the absolute exponents.
function reachOf(exponents, most) {
  const sizes = Float64Array.from(exponents.filter(Number.isFinite), Math.abs).sort();
  const size = sizes.length ? sizes[Math.floor(0.998 * (sizes.length - 1))] : 0;
  return Math.min(most, Math.max(1, Math.ceil(size)));
}

// On a narrow screen the bar lies below the chart.
function colourBar(title, more = {}) {
  const common = { thickness: 12, outlinewidth: 0, ...more };
  if (!isNarrow()) return { ...common, title: { text: title, side: "right" } };
  return { ...common, title: { text: title, side: "top" }, orientation: "h", x: 0.5, xanchor: "center", yanchor: "top", len: 1 };
}

const BAR_BELOW = 114; // pixels below a chart for its axis and a colour bar
const NARROW = matchMedia("(max-width: 600px)");

function isPrinting() {
  return document.documentElement.dataset.printing === "yes";
}

function isNarrow() {
  return NARROW.matches && !isPrinting();
}

function axis(title, more = {}) {
  const line = colour("line");
  return { title: { text: title }, gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...more };
}

// An axis of ids from 0, with ticks at integers only.
function idAxis(title, count, more = {}) {
  return axis(title, { showgrid: false, zeroline: false, ...(count <= 12 ? { dtick: 1 } : {}), ...more });
}

function layout(more) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("ink"), family: "system-ui, sans-serif", size: 12 },
    margin: isNarrow() ? { l: 44, r: 10, t: 30, b: 40 } : { l: 60, r: 14, t: 30, b: 44 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    hoverlabel: { align: "left", namelength: -1 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("faint"), activecolor: colour("ink") },
    ...more,
  };
}

const CONFIG = {
  displaylogo: false,
  responsive: true,
  showTips: false,
  plotlyServerURL: "",
  showSendToCloud: false,
  // An explicit list, because plotly.js has a button that uploads the chart.
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};

const NEEDS_PLANS = new Set(["rank-load", "rank-table", "layer-balance", "step-time", "windows", "migration"]);
const DRAWERS = {}; // {element id: function that draws it}
const TIPS = {}; // {chart id: tooltip text of a point}
const CLICKS = {}; // {chart id: handler of a click on a point}
const REST_MS = 120;
const pending = new Set();
let frame = 0;
let rest = 0;

// Schedules a redraw: visible parts in the next frame, the others after the slider has rested, so that many steps between
// two frames cost one redraw. `data-ready` on the document is "yes" when nothing is left to draw.
function redraw(...ids) {
  document.documentElement.dataset.ready = "no";
  ids.filter((id) => page.plans.length || !NEEDS_PLANS.has(id)).forEach((id) => pending.add(id));
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    drawPending(isOnScreen);
  });
  clearTimeout(rest);
  rest = setTimeout(() => drawPending(() => true), REST_MS);
}

function drawPending(isWanted) {
  [...pending].filter(isWanted).forEach((id) => {
    pending.delete(id);
    DRAWERS[id]();
  });
  if (!pending.size) document.documentElement.dataset.ready = "yes";
}

function isOnScreen(id) {
  const { top, bottom } = byId(id).getBoundingClientRect();
  return bottom > 0 && top < window.innerHeight;
}

// Draws or redraws a chart; `description` is its text for screen readers.
function draw(id, traces, more, description) {
  const chart = byId(id);
  const isNew = !chart.data;
  chart.setAttribute("aria-label", description);
  const size = isPrinting() ? { width: chart.clientWidth, height: chart.clientHeight } : { autosize: true };
  const full = { ...layout(more), ...size };
  const bar = full.coloraxis?.colorbar ?? traces.find((trace) => trace.colorbar)?.colorbar;
  if (isNarrow() && bar) {
    full.margin = { ...full.margin, b: BAR_BELOW };
    bar.y = -58 / (chart.clientHeight - full.margin.t - BAR_BELOW);
  }
  Plotly.react(chart, traces, full, CONFIG);
  if (isNew && TIPS[id]) {
    tipOn(chart, TIPS[id]);
    cursorOn(chart, TIPS[id]);
  }
  if (isNew && CLICKS[id]) chart.on("plotly_click", ({ points }) => CLICKS[id](points[0]));
}

// Heatmaps have too many cells for one text each: the tooltip of the hovered cell is created on demand.
function tipOn(chart, textOf) {
  chart.on("plotly_hover", ({ points, event }) => showTip(textOf(points[0]), event.clientX, event.clientY));
  chart.on("plotly_unhover", () => { byId("tip").hidden = true; });
}

// Beside a point of the window, moved so that the tooltip is inside it.
function showTip(text, x, y) {
  const tip = byId("tip");
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(x + 14, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, y - tip.offsetHeight - 10)}px`;
}
