// The charts of all layers: load of every expert, balance by layer and by window, migration.

const PLAN_STYLES = [
  { color: "before", dash: "solid", symbol: "circle" },
  { color: "#0072b2", dash: "solid", symbol: "square" },
  { color: "#e69f00", dash: "dash", symbol: "diamond" },
  { color: "#009e73", dash: "dot", symbol: "triangle-up" },
  { color: "#cc79a7", dash: "dashdot", symbol: "cross" },
  { color: "#d55e00", dash: "longdash", symbol: "x" },
];

function planStyle(index) {
  const style = PLAN_STYLES[index % PLAN_STYLES.length];
  const named = index === 1 ? "after" : style.color;
  return { ...style, color: named.startsWith("#") ? named : colour(named) };
}

const LEAST = 20; // a load of 0 is shown as 2 ** -LEAST of the mean: below the colour scale

function drawLoadMap() {
  const { num_layers: numLayers, num_experts: numExperts, num_expert_groups: groups } = page.model;
  const z = Array.from({ length: numLayers }, (_, layer) => {
    const load = at(page.load, layer);
    const mean = total(load) / numExperts;
    return Float64Array.from(load, (value) => (mean > 0 ? Math.max(-LEAST, Math.log2(value / mean)) : NaN));
  });
  const reach = reachOf(z.flatMap((row) => Array.from(row).filter((exponent) => exponent > -LEAST)), 4);
  const bar = factorBar("times the layer's mean expert", reach);
  const trace = {
    type: "heatmap", z, zmin: -reach, zmax: reach, colorscale: aroundOne(), colorbar: bar, hoverinfo: "none",
  };
  const borders = Array.from({ length: groups - 1 }, (_, i) => (i + 1) * page.model.experts_per_group - 0.5);
  const line = { color: colour("ink"), width: 1, dash: "dot" };
  draw("load-map", [trace], {
    xaxis: idAxis(groups > 1 ? "expert (dotted: expert groups)" : "expert", numExperts),
    yaxis: idAxis("layer", numLayers, { autorange: "reversed" }),
    shapes: [
      ...borders.map((x) => ({ type: "line", x0: x, x1: x, y0: -0.5, y1: numLayers - 0.5, line })),
      selectedRow("x"),
      ...(state.expert === null ? [] : [frameAt("x", state.expert)]),
    ],
  }, `Heatmap of the load of ${numExperts} experts in ${numLayers} layers, over the mean of the layer.`);
}

// A frame around the selected layer, over the whole length of the other axis.
function selectedRow(across) {
  return frameAt(across === "x" ? "y" : "x", state.layer);
}

function loadTip({ x: expert, y: layer }) {
  const load = at(page.load, layer);
  const mean = total(load) / load.length;
  return `layer ${layerName(layer)}, expert ${expert}\n${tokens(load[expert])} tokens\n` +
    `${times(overMean(load[expert], mean))} the mean expert`;
}

// With several windows there are two values: the mean over windows, and that of the summed load.
function balanceOf(plan) {
  return (state.balanceOf === "total" ? plan.max_over_mean_of_total : plan.max_over_mean).data;
}

function drawLayerBalance() {
  const layers = Array.from({ length: page.model.num_layers }, (_, layer) => layer);
  const traces = page.plans.map((plan, index) => {
    const style = planStyle(index);
    return {
      type: "scatter", mode: "markers", name: chartName(plan), x: layers, y: balanceOf(plan),
      marker: { symbol: style.symbol, color: style.color, size: index === state.plan ? 9 : 6 },
      hovertemplate: "layer %{x}: %{y:.4f}\u00d7 the mean",
    };
  });
  const top = largest(page.plans.map((plan) => largest(balanceOf(plan))));
  const excess = Math.max(top - 1, 0.02);
  const of = page.num_windows === 1 ? "" : { each: ", mean of windows", total: ", windows summed" }[state.balanceOf];
  draw("layer-balance", traces, {
    xaxis: idAxis("layer", layers.length, { range: [-0.7, layers.length - 0.3] }),
    yaxis: axis(`max/mean rank load${of}; 1 is perfect`, { range: [1 - 0.04 * excess, 1 + 1.06 * excess] }),
    shapes: [selectedRow("y")],
  }, `Markers of max/mean rank load by layer for ${page.plans.length} plans; the worst is ${times(top)}.`);
}

// One number per window: of the selected layer, or the mean or the maximum over the layers with tokens; NaN, a gap in the
// line, without tokens.
function byWindow(balance) {
  return Array.from({ length: balance.shape[0] }, (_, window) => {
    const layers = at(balance, window);
    if (state.windowsOf === "layer") return layers[state.layer];
    const known = layers.filter((ratio) => !Number.isNaN(ratio));
    if (known.length === 0) return NaN;
    return state.windowsOf === "worst" ? largest(known) : total(known) / known.length;
  });
}

function drawWindows() {
  if (!page.windows) return;
  const numbers = page.windows.map((_, window) => window);
  const traces = page.plans.map((plan, index) => {
    const style = planStyle(index);
    return {
      type: "scatter", mode: "lines", name: chartName(plan), x: numbers, y: byWindow(plan.balance_by_window),
      line: { color: style.color, dash: style.dash, width: index === state.plan ? 2.5 : 1.5 },
      text: page.windows.map(plain), hovertemplate: "%{text}: %{y:.4f}\u00d7 the mean",
    };
  });
  const of = { layer: `layer ${layerName(state.layer)}`, mean: "mean of layers", worst: "worst layer" }[state.windowsOf];
  draw("windows", traces, {
    xaxis: idAxis("window, in order of time", numbers.length),
    yaxis: axis(`max/mean rank load, ${of}`),
  }, `Lines of max/mean rank load over ${numbers.length} windows, ${of}.`);
}

function drawMigration() {
  const plan = page.plans[state.plan];
  const { migration } = plan;
  byId("migration").hidden = !migration;
  byId("migration-summary").textContent = migrationSummary(plan);
  if (!migration) return;
  const unit = migration.expert_bytes === null ? 1 : migration.expert_bytes / 1e9;
  const rows = Array.from({ length: plan.num_ranks }, (_, rank) => Float64Array.from(at(migration.link_copies, rank)));
  const z = rows.map((row, from) => row.map((value, to) => (from === to ? NaN : value * unit)));
  const bar = colourBar(migration.expert_bytes === null ? "replicas" : "GB");
  const most = largest(migration.link_copies.data) * unit;
  const trace = { type: "heatmap", z, zmin: 0, zmax: most || 1, colorscale: "Cividis", colorbar: bar, hoverinfo: "none" };
  draw("migration", [trace], {
    xaxis: idAxis("to rank", plan.num_ranks, { constrain: "domain" }),
    yaxis: idAxis("from rank", plan.num_ranks, DOWN),
  }, `Heatmap of what each rank sends to each other rank in the migration to ${plan.name}.`);
}

function migrationSummary(plan) {
  const first = page.plans[0].name;
  if (state.plan === 0) return `${first} is the plan from which migrations start: nothing moves.`;
  if (!plan.migration) return `${plan.name} and ${first} have different slots: there is no migration between them.`;
  const { summary, expert_bytes: expertBytes } = plan.migration;
  const moved = `${summary.moved_copies.toLocaleString("en-US")} replicas move to another rank`;
  const between = `${summary.moved_between_nodes.toLocaleString("en-US")} of them between nodes`;
  const batches = `${summary.num_batches.toLocaleString("en-US")} batches`;
  if (expertBytes === null) return `From ${first} to ${plan.name} ${moved}, ${between}, in ${batches}.`;
  return `From ${first} to ${plan.name} ${moved}, ${bytes(summary.moved_bytes)} at ${bytes(expertBytes)} per expert and ` +
    `layer, ${between}; at the topology's bandwidths ${summary.transfer_s.toPrecision(3)} s in ${batches}.`;
}

function linkTip({ x: to, y: from }) {
  if (from === to) return `rank ${from}: itself`;
  const { link_copies: copies, expert_bytes: expertBytes } = page.plans[state.plan].migration;
  const moved = at(copies, from)[to];
  return `rank ${from} to rank ${to}: ${expertBytes === null ? `${moved} replicas` : bytes(moved * expertBytes)}`;
}
Object.assign(DRAWERS, {
  "load-map": drawLoadMap, "layer-balance": drawLayerBalance, windows: drawWindows, migration: drawMigration,
});
Object.assign(TIPS, { "load-map": loadTip, migration: linkTip });
Object.assign(CLICKS, { "load-map": ({ y }) => chooseLayer(y), "layer-balance": ({ x }) => chooseLayer(x) });
