// Connects the controls of the page to the charts that depend on them.

const OF_PLAN = ["rank-load", "rank-table", "expert-load"];
const OF_EXPERT = ["rank-load", "expert-load", "coactivation", "load-map"];
const OF_LAYER = [...OF_PLAN, "coactivation", "pair-table", "load-map", "layer-balance", "step-time"];
const ALL = [...OF_LAYER, "windows", "migration", "domains"];

function writeLayer() {
  const { layer } = state;
  byId("layer").value = layer;
  byId("layer").setAttribute("aria-valuetext", `layer ${layerName(layer)}`);
  byId("layer-name").textContent = `${layerName(layer)}; 0 to ${page.model.num_layers - 1}`;
  byId("layer-heading").textContent = `Layer ${layerName(layer)}`;
  byId("layer-summary").textContent = page.summary_text[1 + layer];
  byId("coactivation-summary").textContent = page.coactivation?.summary[layer] ?? "";
  writeExpert();
  writeAddress();
}

function chooseLayer(layer) {
  state.layer = Math.min(page.model.num_layers - 1, Math.max(0, layer));
  writeLayer();
  redraw(...OF_LAYER);
  if (state.windowsOf === "layer") redraw("windows");
}

function choosePlan(index) {
  state.plan = index;
  checkPlan();
  writeExpert();
  writeAddress();
  redraw(...OF_PLAN, "layer-balance", "step-time", "windows", "migration");
}

function checkPlan() {
  document.querySelectorAll('input[name="plan"]').forEach((radio, i) => { radio.checked = i === state.plan; });
}

function radio(name, value, text, checked, onChoice) {
  const label = element("label");
  const input = element("input", "", { type: "radio", name, value });
  input.defaultChecked = checked;
  input.addEventListener("change", onChoice);
  label.append(input, text);
  return label;
}

// A group of radio buttons that sets one entry of the state.
function choices(id, key, labels, chart) {
  Object.entries(labels).forEach(([value, text]) => {
    byId(id).append(radio(id, value, text, state[key] === value, () => {
      state[key] = value;
      redraw(chart);
    }));
  });
}

let lastOther = 1;
function onKey(event) {
  const typing = event.target.closest?.("input, textarea, [contenteditable]");
  if (typing && !["radio", "checkbox", "range"].includes(typing.type)) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "b" && page.plans.length > 1) {
    if (state.plan > 0) lastOther = state.plan;
    choosePlan(state.plan > 0 ? 0 : lastOther);
  }
  if (typing) return; // the slider and the radio buttons handle arrow keys themselves
  if (event.key === "ArrowLeft") chooseLayer(state.layer - 1);
  if (event.key === "ArrowRight") chooseLayer(state.layer + 1);
}

function wireControls() {
  byId("layer").max = page.model.num_layers - 1;
  byId("layer").addEventListener("input", (event) => chooseLayer(Number(event.target.value)));
  byId("layer-down").addEventListener("click", () => chooseLayer(state.layer - 1));
  byId("layer-up").addEventListener("click", () => chooseLayer(state.layer + 1));
  page.plans.forEach((plan, index) => {
    byId("plans").append(radio("plan", index, plan.name, index === state.plan, () => choosePlan(index)));
  });
  byId("expert").max = page.model.num_experts - 1;
  byId("expert").addEventListener("input", typedExpert);
  byId("compare").addEventListener("change", (event) => {
    state.compare = event.target.checked;
    redraw("rank-load");
  });
  byId("theme").addEventListener("click", () => {
    const dark = colour("paper") === "#0d1117";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    redraw(...ALL);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(...ALL));
  NARROW.addEventListener("change", () => redraw(...ALL));
  window.addEventListener("hashchange", showAddress);
  wirePrinting();
  document.addEventListener("keydown", onKey);
}

// The address was changed by hand or by a link.
function showAddress() {
  readAddress();
  checkPlan();
  byId("expert").value = state.expert ?? "";
  writeLayer();
  redraw(...ALL);
}

function wireChoices() {
  choices("expert-order", "expertOrder", { load: "by load", id: "by id" }, "expert-load");
  const value = { lift: "lift", count: "tokens" };
  choices("coactivation-value", "coactivationValue", value, "coactivation");
  choices("coactivation-order", "coactivationOrder", { blocks: "similar adjacent", id: "by id" }, "coactivation");
  const balance = { each: "mean of windows", total: "windows summed" };
  if (page.num_windows > 1) choices("balance-of", "balanceOf", balance, "layer-balance");
  choices("windows-of", "windowsOf", { mean: "mean of layers", worst: "worst layer", layer: "this layer" }, "windows");
}

function writeOnce() {
  document.querySelectorAll("[data-needs-plans]").forEach((part) => { part.hidden = !page.plans.length; });
  const libraries = `plotly.js ${Plotly.version} and DataTables ${DataTable.version}, both under the MIT licence`;
  [...page.provenance, ["charts and tables by", libraries]].forEach(([name, text]) => byId("provenance").append(element("dt", name), element("dd", text)));
  byId("coactivation-part").hidden = !page.coactivation;
  byId("no-coactivation").hidden = Boolean(page.coactivation);
  if (page.coactivation) byId("coactivation-note").textContent = page.coactivation.note;
  const summed = page.num_windows > 1 ? `sum of ${page.num_windows.toLocaleString("en-US")} windows` : "";
  document.querySelectorAll(".summed").forEach((span) => { span.textContent = summed; });
  byId("domains-part").hidden = !page.domains;
  byId("step-time-part").hidden = !page.plans[0]?.step;
  byId("step-time-note").textContent = page.about_steps;
  byId("windows-part").hidden = !page.windows || !page.plans.length;
  byId("no-windows").hidden = Boolean(page.windows) || !page.plans.length;
  byId("migration-part").hidden = !page.plans.some((plan) => plan.migration);
  if (page.plans.length) fillMetricTable();
}

async function start() {
  page = await unpack(JSON.parse(byId("payload").textContent));
  state.layer = page.first_layer;
  state.plan = page.recommended ?? 0;
  lastOther = state.plan || Math.min(1, page.plans.length - 1);
  readAddress();
  byId("expert").value = state.expert ?? "";
  writeOnce();
  wireControls();
  wireChoices();
  writeLayer();
  redraw(...ALL);
}

function showError(error) {
  document.documentElement.dataset.ready = "failed";
  byId("problem").hidden = false;
  byId("problem").textContent = `This page cannot be shown here: ${error.message ?? error}. It needs a browser of 2023 or later.`;
  throw error;
}

start().catch(showError);
