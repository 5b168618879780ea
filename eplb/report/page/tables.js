// Tables: filled for a layer and plan; DataTables sorts and filters them, a button saves them as CSV.

const TABLES = {}; // {table id: {titles, table}}

// columns: {title, isText, className}; rows: arrays of {text, value, title, saved} in the order of the columns. Sorting and
// filtering outlast new rows.
function fillTable(id, columns, rows) {
  const titles = columns.map(({ title }) => title).join("\n");
  const made = TABLES[id];
  if (made?.titles === titles) {
    made.table.clear().rows.add(rows).draw();
    return;
  }
  const order = (made?.table.order() ?? []).filter(([index]) => index < columns.length);
  made?.table.destroy();
  const table = byId(id);
  table.tHead.replaceChildren();
  table.tBodies[0].replaceChildren();
  TABLES[id] = { titles, table: new DataTable(table, { ...TABLE_OPTIONS, ...tableParts(id, columns), data: rows, order }) };
}

const TABLE_OPTIONS = { paging: false, info: false, autoWidth: false, orderMulti: false };

function tableParts(id, columns) {
  return {
    columns: columns.map((column, index) => ({
      title: plain(column.title),
      data: index,
      render: { _: (cell) => plain(cell.text), sort: "value", type: "value", filter: (cell) => `${cell.text} ${cell.title ?? ""}` },
      type: column.isText ? "string" : "num",
      orderSequence: column.isText ? ["asc", "desc"] : ["desc", "asc"],
      className: [column.isText ? "text" : "", column.className ?? ""].join(" ").trim(),
      createdCell: (td, _, row) => describeCell(td, row[index], column),
    })),
    createdRow: (row) => row.setAttribute("role", "row"),
    layout: { topStart: () => csvButton(id, columns), topEnd: "search", bottomStart: null, bottomEnd: null },
    language: { search: "Filter", zeroRecords: "No row has this text.", emptyTable: byId(id).dataset.empty ?? "No rows." },
  };
}

// Roles are written out, because rows are laid out as blocks on a narrow screen, where a table would lose them.
function describeCell(td, cell, column) {
  td.setAttribute("role", "cell");
  td.dataset.title = column.title;
  td.dataset.value = cell.value;
  if (cell.title) td.title = cell.title;
  if (cell.below) td.dataset.below = cell.below;
}

function csvButton(id, columns) {
  const button = element("button", "Save as CSV", { type: "button", class: "csv" });
  button.addEventListener("click", () => {
    const rows = TABLES[id].table.rows({ search: "applied" }).data().toArray();
    const cells = rows.map((row) => row.map((cell, index) => cell.saved ?? (columns[index].isText ? cell.text : cell.value)));
    saveCsv(`${byId(id).dataset.file}${id === "metric-table" ? "" : `-layer-${state.layer}`}.csv`, [columns.map((c) => c.title), ...cells]);
  });
  return button;
}

// A text that a spreadsheet would take for a formula gets an apostrophe; texts with separators are quoted.
function csvCell(value) {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

function saveCsv(name, rows) {
  const text = rows.map((row) => `${row.map(csvCell).join(",")}\n`).join("");
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  const link = element("a", "", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
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
  const columns = ["expert", "other expert", "tokens", "\u00d7 chance"].map((title) => ({ title }));
  const rows = page.coactivation.top_pairs[state.layer].map(([first, second, count, lift]) => [
    number(first), number(second), number(count, tokens(count)), number(lift, lift.toPrecision(4)),
  ]);
  byId("pair-part").hidden = rows.length === 0;
  byId("no-pairs").hidden = rows.length > 0;
  fillTable("pair-table", columns, rows);
}

function fillMetricTable() {
  const columns = [{ title: "metric", isText: true, className: "name" }, { title: "meaning", isText: true, className: "meaning" }];
  columns.push(...page.plans.map((plan) => ({ title: plan.name })));
  const names = [...new Set(page.plans.flatMap((plan) => Object.keys(plan.metrics)))];
  const rows = names.map((name) => {
    const meaning = page.metric_meanings[name] ?? "";
    return [
      { text: name, value: name, below: meaning },
      { text: meaning, value: meaning },
      ...page.plans.map(({ metrics }) => metricCell(metrics[name])),
    ];
  });
  fillTable("metric-table", columns, rows);
}

function metricCell(value) {
  return value === undefined ? { text: "\u2013", value: "" } : { text: metric(value), value, title: String(value) };
}

Object.assign(DRAWERS, { "rank-table": fillRankTable, "pair-table": fillPairTable });
