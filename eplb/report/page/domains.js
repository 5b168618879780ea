// The load of every expert, one small heatmap for each file or domain, all with the same colours.

const SMALL_HEIGHT = 230;

function drawDomains() {
  const { domains } = page;
  if (!domains) return;
  const columns = Math.min(domains.names.length, isNarrow() ? 1 : isPrinting() ? 2 : 3);
  const rows = Math.ceil(domains.names.length / columns);
  byId("domains").style.height = `${rows * SMALL_HEIGHT + 70}px`;
  const ratios = domains.names.map((_, domain) => domainRatios(domain));
  const exponents = ratios.map((matrix) => matrix.map((row) => row.map((ratio) => Math.max(-LEAST, Math.log2(ratio)))));
  const reach = reachOf(exponents.flat(2).filter((exponent) => exponent > -LEAST), 4);
  const traces = exponents.map((z, i) => ({
    type: "heatmap", z, customdata: ratios[i], xaxis: `x${i + 1}`, yaxis: `y${i + 1}`, coloraxis: "coloraxis",
    hovertemplate: `${plain(domains.names[i])}: layer %{y}, expert %{x}: %{customdata:.3f}\u00d7 the mean expert<extra></extra>`,
  }));
  const axes = traces.flatMap((_, i) => [
    [`xaxis${i + 1}`, idAxis(i >= traces.length - columns ? "expert" : "", page.model.num_experts)],
    [`yaxis${i + 1}`, idAxis(i % columns ? "" : "layer", page.model.num_layers, { autorange: "reversed" })],
  ]);
  draw("domains", traces, {
    ...Object.fromEntries(axes),
    grid: { rows, columns, pattern: "independent", ygap: 0.35 },
    coloraxis: { cmin: -reach, cmax: reach, colorscale: aroundOne(), colorbar: factorBar("times the layer's mean expert", reach) },
    annotations: domains.names.map((name, i) => ({
      text: `${plain(name)}: ${tokens(domains.choices[i])} choices of a layer`, xref: `x${i + 1} domain`, yref: `y${i + 1} domain`, x: 0, y: 1,
      xanchor: "left", yanchor: "bottom", showarrow: false,
    })),
  }, `Heatmaps of the load of every expert over the mean of its layer, for ${domains.names.length} parts of the traffic.`);
}

function domainRatios(domain) {
  return Array.from({ length: page.model.num_layers }, (_, layer) => {
    const load = Array.from(at(page.domains.load, domain, layer));
    const mean = total(load) / load.length;
    return load.map((value) => (mean > 0 ? value / mean : NaN));
  });
}

DRAWERS.domains = drawDomains;
