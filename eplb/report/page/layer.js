// The charts of one layer: rank load, expert load, co-activation.

const REPLICA_COLOURS = ["#8c959f", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#d55e00"];

// Values of a layer under a plan that are derived from arrays of the payload.
function layerFacts(plan, layer) {
  const numExperts = page.model.num_experts;
  const slots = at(plan.physical_to_logical_map, layer);
  const load = at(page.load, layer);
  const replicas = new Int32Array(numExperts);
  const ranksOf = Array.from({ length: numExperts }, () => []);
  const experts = Array.from({ length: plan.num_ranks }, () => []);
  slots.forEach((expert, slot) => {
    if (expert < 0) return;
    const rank = plan.rank_of_slot.data[slot];
    replicas[expert] += 1;
    ranksOf[expert].push(rank);
    experts[rank].push(expert);
  });
  return { load, replicas, ranksOf, experts, ...rankTimes(plan, layer) };
}

// Load over relative speed: the time of a rank. With equal speeds it is the load.
function rankTimes(plan, layer) {
  const rankLoad = at(plan.rank_load, layer);
  const time = plan.relative_speed ? rankLoad.map((load, rank) => load / plan.relative_speed[rank]) : rankLoad;
  return { rankLoad, time, mean: total(time) / time.length, busiest: largest(time) };
}

// Values of the layer under the selected plan; without plans only the load.
function expertView() {
  if (page.plans.length) return layerFacts(page.plans[state.plan], state.layer);
  return { load: at(page.load, state.layer), replicas: null };
}

function overMean(value, mean) {
  return mean > 0 ? value / mean : 1;
}

function nodeOfRank(plan, rank) {
  return plan.node_first_rank.filter((first) => first <= rank).length - 1;
}

function rankTip(plan, facts, rank) {
  const held = facts.experts[rank];
  const list = held.slice(0, 24).join(", ") + (held.length > 24 ? ", ..." : "");
  const lines = [
    `rank ${rank} (node ${nodeOfRank(plan, rank)})`,
    `${tokens(facts.rankLoad[rank])} tokens, ${times(overMean(facts.time[rank], facts.mean))} the mean`,
  ];
  if (plan.relative_speed) lines.push(`relative speed ${plan.relative_speed[rank].toPrecision(3)}`);
  return [...lines, `${held.length} experts: ${list}`].join("<br>");
}

function rankBars(plan, layer, style) {
  const facts = layerFacts(plan, layer);
  return {
    type: "bar",
    name: chartName(plan),
    x: facts.time.map((_, rank) => rank),
    y: facts.time,
    hovertext: Array.from(facts.time, (_, rank) => rankTip(plan, facts, rank)),
    hoverinfo: "text+name",
    ...style,
  };
}

function levelLine(name, value, last, style) {
  return {
    type: "scatter", mode: "lines", name, x: [-0.5, last + 0.5], y: [value, value], line: { width: 2, ...style },
    hovertemplate: `${name}: ${tokens(value)} tokens<extra></extra>`,
  };
}

function nodeBorders(plan) {
  return plan.node_first_rank.slice(1, -1).map((first) => ({
    type: "line", xref: "x", yref: "paper", y0: 0, y1: 1, layer: "below", x0: first - 0.5, x1: first - 0.5,
    line: { color: colour("line"), width: 1, dash: "dot" },
  }));
}

function drawRankLoad() {
  const { layer } = state;
  const plan = page.plans[state.plan];
  const { mean, busiest } = rankTimes(plan, layer);
  const bound = plan.bound[layer];
  const traces = [];
  if (state.plan > 0 && state.compare) {
    traces.push(rankBars(page.plans[0], layer, { width: 0.94, marker: { color: colour("before"), opacity: 0.55 } }));
  }
  const style = { color: colour(state.plan > 0 ? "after" : "before") };
  traces.push(rankBars(plan, layer, { width: state.plan > 0 ? 0.6 : 0.94, marker: style }));
  traces.push(levelLine("mean", mean, plan.num_ranks - 1, { color: colour("mean"), dash: "dot" }));
  if (bound > 0) {
    const style = { color: colour("bound"), dash: "dash" };
    traces.push(levelLine(`lower bound (${plan.binding[layer]})`, bound, plan.num_ranks - 1, style));
  }
  // One scale for all plans of the layer, so that selecting a plan changes the bars and not the axis.
  const top = largest(page.plans.map((p) => rankTimes(p, layer).busiest));
  const description = `Bars of the load of ${plan.num_ranks} ranks in layer ${layerName(layer)} under ${plan.name}: the busiest ` +
    `carries ${tokens(busiest)} tokens, the mean is ${tokens(mean)}, the lower bound ${tokens(bound)}.`;
  draw("rank-load", traces, {
    barmode: "overlay",
    xaxis: idAxis("rank (dotted: nodes)", plan.num_ranks, { range: [-0.7, plan.num_ranks - 0.3] }),
    yaxis: axis(plan.relative_speed ? "tokens / relative speed" : "tokens", { range: [0, top > 0 ? top * 1.06 : 1] }),
    shapes: [...nodeBorders(plan), ...ranksOfExpert(plan, layer).map((rank) => frameAt("x", rank))],
  }, description);
}

function ranksOfExpert(plan, layer) {
  return state.expert === null ? [] : [...new Set(layerFacts(plan, layer).ranksOf[state.expert])];
}

function expertTip(facts, expert, mean) {
  const group = Math.floor(expert / page.model.experts_per_group);
  const ofLoad = [
    `expert ${expert}` + (page.model.num_expert_groups > 1 ? `, group ${group}` : ""),
    `${tokens(facts.load[expert])} tokens, ${times(overMean(facts.load[expert], mean))} the mean expert`,
  ];
  if (!facts.replicas) return ofLoad.join("<br>");
  const replicas = facts.replicas[expert];
  return [
    ...ofLoad,
    `${replicas} ${replicas === 1 ? "replica" : "replicas"}, on rank ${facts.ranksOf[expert].join(", ")}`,
    `${tokens(facts.load[expert] / replicas)} tokens per replica, split evenly`,
  ].join("<br>");
}

let shownExperts = []; // the experts in the order of the bars

function drawExpertLoad() {
  const facts = expertView();
  const mean = total(facts.load) / facts.load.length;
  const ids = Array.from(facts.load, (_, expert) => expert);
  if (state.expertOrder === "load") ids.sort((a, b) => facts.load[b] - facts.load[a] || a - b);
  const traces = facts.replicas ? replicaTraces(facts, ids, mean) : [loadBars(facts, ids, mean, ids.map((_, p) => p))];
  shownExperts = ids;
  const most = ids.reduce((a, b) => (facts.load[b] > facts.load[a] ? b : a));
  const inOrderOf = state.expertOrder === "load" ? "experts, sorted by load" : "expert";
  draw("expert-load", traces, {
    barmode: "overlay",
    xaxis: idAxis(inOrderOf, ids.length),
    yaxis: axis("tokens", { rangemode: "tozero" }),
    shapes: state.expert === null ? [] : [frameAt("x", ids.indexOf(state.expert))],
  }, `Bars of the load of ${ids.length} experts in layer ${layerName(state.layer)}; expert ${most} has most, ` +
    `${tokens(facts.load[most])} tokens` +
    (facts.replicas ? ` and ${facts.replicas[most]} replicas under ${page.plans[state.plan].name}.` : "."));
}

function loadBars(facts, ids, mean, positions) {
  return {
    type: "bar", x: positions, y: positions.map((p) => facts.load[ids[p]]), width: 0.92, marker: { color: REPLICA_COLOURS[0] },
    hovertext: positions.map((p) => expertTip(facts, ids[p], mean)), hoverinfo: "text",
  };
}

// Bars in one colour for each number of replicas, and a dot at the tokens of one replica.
function replicaTraces(facts, ids, mean) {
  const last = REPLICA_COLOURS.length;
  const places = ids.map((_, p) => p);
  const bars = REPLICA_COLOURS.map((replicaColour, i) => ({
    ...loadBars(facts, ids, mean, places.filter((p) => Math.min(facts.replicas[ids[p]], last) === i + 1)),
    name: `${i + 1}${i + 1 === last ? " or more" : ""} ${i ? "replicas" : "replica"}`, marker: { color: replicaColour },
  })).filter((trace) => trace.x.length);
  return [...bars, {
    type: "scatter", mode: "markers", name: "tokens per replica, split evenly", hoverinfo: "skip", x: places,
    y: ids.map((expert) => facts.load[expert] / facts.replicas[expert]), marker: { color: colour("ink"), size: ids.length > 300 ? 2 : 3 },
  }];
}

function groupBorders(size) {
  const { num_expert_groups: groups, experts_per_group: width } = page.model;
  const line = { color: colour("ink"), width: 1, dash: "dot" };
  return Array.from({ length: groups - 1 }, (_, i) => (i + 1) * width - 0.5).flatMap((border) => [
    { type: "line", x0: border, x1: border, y0: -0.5, y1: size - 0.5, line },
    { type: "line", y0: border, y1: border, x0: -0.5, x1: size - 0.5, line },
  ]);
}

// Half the colour range in powers of two, the same for all layers so that they can be compared; at most 1/16 to 16.
function liftReach() {
  const exponents = page.coactivation.colour_range.data;
  return Math.min(4, Math.max(1, largest(exponents.map((exponent) => Math.ceil(Math.abs(exponent))))));
}

function coactivationTrace(matrix) {
  const common = { type: "heatmap", z: matrix, hoverinfo: "none", xgap: 0, ygap: 0 };
  if (state.coactivationValue === "lift") {
    const reach = liftReach();
    const z = matrix.map((row) => row.map(Math.log2));
    const bar = factorBar("lift: observed / expected pairs", reach);
    return { ...common, z, zmin: -reach, zmax: reach, colorscale: aroundOne(), colorbar: bar };
  }
  const top = largest(matrix.map((row) => largest(row.filter((count) => count >= 0))));
  const z = matrix.map((row) => row.map(Math.sqrt));
  const values = [0, 0.1, 0.25, 0.5, 1].map((part) => Math.round(Math.max(0, top) * part));
  const bar = colourBar("tokens that chose both (square-root scale)", {
    tickvals: values.map(Math.sqrt), ticktext: values.map(tokens),
  });
  return { ...common, z, zmin: 0, zmax: Math.sqrt(Math.max(top, 1)), colorscale: "Cividis", colorbar: bar };
}

const DOWN = { autorange: "reversed", scaleanchor: "x", constrain: "domain" }; // a square matrix, rows from the top

let shownPairs = null; // the values shown in the heatmap, for the tooltip
let ofPairs = { layer: null };

// {lift, counts} of the selected layer, decoded once.
function layerPairs() {
  if (ofPairs.layer !== state.layer) {
    const lift = liftMatrix(page.coactivation, state.layer);
    ofPairs = { layer: state.layer, lift, counts: pairMatrix(page.coactivation, state.layer, lift) };
  }
  return ofPairs;
}

function drawCoactivation() {
  const { coactivation } = page;
  if (!coactivation) return;
  const { lift, counts } = layerPairs();
  const blocks = state.coactivationOrder === "blocks";
  const order = blocks ? at(coactivation.order, state.layer) : Uint16Array.from(lift, (_, expert) => expert);
  shownPairs = { lift, counts, order };
  const matrix = inOrder(state.coactivationValue === "lift" ? lift : counts, order);
  const groups = page.model.num_expert_groups > 1 ? " (dotted: expert groups)" : "";
  const title = blocks ? "experts, similar ones adjacent" : `expert${groups}`;
  const places = blocks ? { showticklabels: false, ticks: "" } : { showticklabels: true, ticks: "outside" };
  draw("coactivation", [coactivationTrace(matrix)], {
    xaxis: idAxis(title, order.length, { constrain: "domain", ...places }),
    yaxis: idAxis(title, order.length, { ...DOWN, ...places }),
    shapes: [...(blocks ? [] : groupBorders(order.length)), ...expertFrames(order)],
  }, `Heatmap of ${order.length} by ${order.length} experts of layer ${layerName(state.layer)}: ` +
    `${state.coactivationValue === "lift" ? "how much more often than by chance" : "how often"} tokens choose both.`);
}

function expertFrames(order) {
  const place = order.indexOf(state.expert);
  if (place < 0) return [];
  const [first, last] = [-0.5, order.length - 0.5]; // the plot is narrower than the paper
  const line = { color: colour("bound"), width: order.length > 64 ? 1 : 2 };
  return [
    { ...frameAt("x", place), yref: "y", y0: first, y1: last, line },
    { ...frameAt("y", place), xref: "x", x0: first, x1: last, line },
  ];
}

function pairTip({ x, y }) {
  const [i, j] = [shownPairs.order[y], shownPairs.order[x]];
  if (i === j) return `expert ${i}: ${tokens(at(page.coactivation.tokens, state.layer)[i])} tokens`;
  const group = (expert) => Math.floor(expert / page.model.experts_per_group);
  const groups = page.model.num_expert_groups > 1 ? `\ngroups ${group(i)} and ${group(j)}` : "";
  return `experts ${i} and ${j}\nabout ${tokens(shownPairs.counts[i][j])} tokens chose both\n` +
    `${times(shownPairs.lift[i][j])} as often as by chance (rare pairs shrunk to 1)${groups}`;
}
Object.assign(DRAWERS, {
  "rank-load": drawRankLoad, "expert-load": drawExpertLoad, coactivation: drawCoactivation,
});
TIPS.coactivation = pairTip;
CLICKS.coactivation = ({ y }) => chooseExpert(shownPairs.order[y]);
CLICKS["expert-load"] = ({ x }) => chooseExpert(shownExperts[x]);
