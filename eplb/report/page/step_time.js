// The chart of predicted milliseconds by layer and part; the first plan's sum as a line behind the selected plan.

const STEP_PARTS = {
  dispatch: { name: "dispatch", color: "#56b4e9", shape: "" },
  ffn: { name: "FFN, mean rank", color: "#0072b2", shape: "" },
  waiting: { name: "waiting for the slowest rank", color: "#e69f00", shape: "/" },
  combine: { name: "combine", color: "#009e73", shape: "" },
};

function drawStepTime() {
  const { step, name } = page.plans[state.plan];
  if (!step) return;
  const traces = Object.entries(STEP_PARTS).map(([part, style]) => ({
    type: "bar", name: style.name, x: step.layers, y: step[part].data,
    marker: { color: style.color, pattern: { shape: style.shape, fillmode: "overlay", fgcolor: "#ffffff" } },
    hovertemplate: `layer %{x}: %{y:.3f} ms ${style.name}<extra></extra>`,
  }));
  const first = page.plans[0];
  if (state.plan > 0) {
    traces.push({
      type: "scatter", mode: "lines+markers", name: `sum of ${chartName(first)}`, x: first.step.layers, y: first.step.step.data,
      line: { color: colour("bound"), width: 1, dash: "dot" }, marker: { size: 4, color: colour("bound") },
      hovertemplate: `layer %{x}: %{y:.3f} ms with ${chartName(first)}<extra></extra>`,
    });
  }
  const most = largest(page.plans.map((plan) => largest(plan.step.step.data)));
  const count = page.model.num_layers;
  draw("step-time", traces, {
    barmode: "stack",
    xaxis: idAxis("layer", count, { range: [-0.7, count - 0.3] }),
    yaxis: axis("predicted ms", { range: [0, 1.05 * most] }),
    shapes: [selectedRow("y")],
  }, `Bars of predicted milliseconds by layer under ${name}: dispatch, FFN, waiting, combine.`);
}

Object.assign(DRAWERS, { "step-time": drawStepTime });
Object.assign(CLICKS, { "step-time": ({ x }) => chooseLayer(x) });
