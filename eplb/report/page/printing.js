// Printing: light colours, the width of an A4 page, every list open; afterwards the page is as before.

let beforePrint = null;

function startPrint() {
  const root = document.documentElement;
  beforePrint = { theme: root.dataset.theme, open: byId("layer-summaries").open };
  root.dataset.theme = "light";
  root.dataset.printing = "yes";
  byId("layer-summaries").open = true;
  redraw(...ALL);
  drawPending(() => true);
}

function endPrint() {
  const root = document.documentElement;
  delete root.dataset.printing;
  if (beforePrint.theme) root.dataset.theme = beforePrint.theme;
  else delete root.dataset.theme;
  byId("layer-summaries").open = beforePrint.open;
  redraw(...ALL);
}

function wirePrinting() {
  window.addEventListener("beforeprint", startPrint);
  window.addEventListener("afterprint", endPrint);
}
