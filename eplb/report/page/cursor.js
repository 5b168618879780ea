// A keyboard cursor in the heatmaps: arrow keys move it, Enter selects what a click would select.

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const cursors = {}; // {chart id: {x, y}}, the cell of the last visit

function cursorOn(chart, textOf) {
  const { id } = chart;
  chart.tabIndex = 0;
  chart.setAttribute("role", "application");
  chart.setAttribute("aria-roledescription", "heatmap");
  chart.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== chart) return;
    if (event.key === "Escape") hideCursor();
    if (event.key === "Enter" && cursors[id]) CLICKS[id]?.(cursors[id]);
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation(); // outside a heatmap these keys change the layer
    cursors[id] = moved(cursors[id], step, chart.data[0].z);
    showCursor(chart, cursors[id], textOf);
  });
  chart.addEventListener("blur", hideCursor);
}

function moved(cell, [right, down], rows) {
  if (!cell) return { x: 0, y: 0 };
  const inside = (place, count) => Math.min(count - 1, Math.max(0, place));
  return { x: inside(cell.x + right, rows[0].length), y: inside(cell.y + down, rows.length) };
}

function showCursor(chart, cell, textOf) {
  const { xaxis, yaxis } = chart._fullLayout;
  const box = chart.getBoundingClientRect();
  const ends = (axis, place) => [axis.l2p(place - 0.5), axis.l2p(place + 0.5)].sort((a, b) => a - b).map((p) => p + axis._offset);
  const [left, right] = ends(xaxis, cell.x);
  const [top, bottom] = ends(yaxis, cell.y);
  const cursor = byId("cursor");
  Object.assign(cursor.style, {
    left: `${box.left + window.scrollX + left - 3}px`, top: `${box.top + window.scrollY + top - 3}px`,
    width: `${right - left + 6}px`, height: `${bottom - top + 6}px`,
  });
  cursor.hidden = false;
  byId("cursor-text").textContent = textOf(cell).replaceAll("\n", ", ");
  showTip(textOf(cell), box.left + right, box.top + top);
}

function hideCursor() {
  byId("cursor").hidden = true;
  byId("tip").hidden = true;
}
