// Tables: filled for a layer and plan, sorted by a click on a heading.

// columns: {title, isText}; rows: arrays of {text, value} in the order of the columns.
function fillTable(id, columns, rows) {
  const table = byId(id);
  const sorted = [...table.querySelectorAll("thead th")].findIndex((th) => /ing$/.test(th.getAttribute("aria-sort")));
  const direction = sorted < 0 ? null : table.querySelectorAll("thead th")[sorted].getAttribute("aria-sort");
  const sortable = table.classList.contains("sortable");
  const head = element("tr");
  columns.forEach((column, index) => head.append(heading(table, column, index, sortable)));
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...rows.map((cells) => tableRow(columns, cells)));
  if (direction && sorted < columns.length) sortTable(table, sorted, direction);
}

function heading(table, column, index, sortable) {
  const th = element("th", sortable ? "" : column.title, { scope: "col" });
  if (column.isText) th.classList.add("text");
  if (!sortable) return th;
  const button = element("button", column.title, { type: "button" });
  button.addEventListener("click", () => {
    const turn = th.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
    sortTable(table, index, turn);
  });
  th.setAttribute("aria-sort", "none");
  th.append(button);
  return th;
}

function tableRow(columns, cells) {
  const row = element("tr");
  cells.forEach((cell, index) => {
    const td = element("td", cell.text, { "data-value": cell.value, title: cell.title ?? "" });
    if (!cell.title) td.removeAttribute("title");
    if (columns[index].isText) td.classList.add("text");
    row.append(td);
  });
  return row;
}

// Stable: rows with equal cells keep their order.
function sortTable(table, index, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  const value = (row) => Number(row.cells[index].dataset.value);
  const rows = [...table.tBodies[0].rows].sort((a, b) => sign * (value(a) - value(b)));
  table.querySelectorAll("thead th").forEach((th, i) => th.setAttribute("aria-sort", i === index ? direction : "none"));
  table.tBodies[0].replaceChildren(...rows);
}

const number = (value, text = String(value)) => ({ value, text });

function fillRankTable() {
  const plan = page.plans[state.plan];
  const facts = layerFacts(plan, state.layer);
  const movedIn = plan.migration ? at(plan.migration.moved_in, state.layer) : null;
  // shared: experts of the rank with a replica on another rank
  const columns = ["rank", "node", "tokens", "\u00d7 mean", "experts", "shared"].map((title) => ({ title }));
  if (movedIn) columns.push({ title: "moved in" });
  const rows = facts.experts.map((held, rank) => {
    const distinct = [...new Set(held)];
    const shared = distinct.filter((expert) => facts.ranksOf[expert].some((other) => other !== rank)).length;
    const relative = overMean(facts.time[rank], facts.mean);
    const cells = [
      number(rank), number(nodeOfRank(plan, rank)), number(facts.rankLoad[rank], tokens(facts.rankLoad[rank])),
      number(relative, relative.toFixed(4)), { ...number(distinct.length), title: held.join(", ") }, number(shared),
    ];
    return movedIn ? [...cells, number(movedIn[rank])] : cells;
  });
  fillTable("rank-table", columns, rows);
}

function fillPairTable() {
  if (!page.coactivation) return;
  const columns = ["expert", "expert", "tokens", "\u00d7 independence"].map((title) => ({ title }));
  const rows = page.coactivation.top_pairs[state.layer].map(([first, second, count, lift]) => [
    number(first), number(second), number(count, tokens(count)), number(lift, lift.toPrecision(4)),
  ]);
  fillTable("pair-table", columns, rows);
}

function fillMetricTable() {
  const columns = [{ title: "metric", isText: true }, { title: "meaning", isText: true }];
  columns.push(...page.plans.map((plan) => ({ title: plan.name })));
  const names = [...new Set(page.plans.flatMap((plan) => Object.keys(plan.metrics)))];
  const rows = names.map((name) => [
    { text: name, value: name },
    { text: page.metric_meanings[name] ?? "", value: "" },
    ...page.plans.map(({ metrics }) => metricCell(metrics[name])),
  ]);
  fillTable("metric-table", columns, rows);
}

function metricCell(value) {
  return value === undefined ? { text: "\u2013", value: "" } : { text: metric(value), value, title: String(value) };
}

Object.assign(DRAWERS, { "rank-table": fillRankTable, "pair-table": fillPairTable });
