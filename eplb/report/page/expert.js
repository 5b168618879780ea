// One expert that was searched for: its facts in words, and frames around it in the charts.

const NUM_PARTNERS = 5;

function chooseExpert(expert) {
  state.expert = expert;
  byId("expert").value = expert === null ? "" : expert;
  redraw(...OF_EXPERT);
  writeExpert();
  writeAddress();
}

function typedExpert() {
  const text = byId("expert").value.trim();
  const last = page.model.num_experts - 1;
  const isKnown = /^\d+$/.test(text) && Number(text) <= last;
  byId("expert").setAttribute("aria-invalid", String(text !== "" && !isKnown));
  state.expert = isKnown ? Number(text) : null;
  redraw(...OF_EXPERT);
  writeExpert(text === "" || isKnown ? "" : `Expert ${text}: expected 0 to ${last}.`);
  writeAddress();
}

function writeExpert(problem = "") {
  const facts = byId("expert-facts");
  facts.hidden = state.expert === null && !problem;
  facts.textContent = state.expert === null ? problem : expertFacts(state.expert);
}

function expertFacts(expert) {
  const facts = expertView();
  const mean = total(facts.load) / facts.load.length;
  const text = `${expertTip(facts, expert, mean).replaceAll("<br>", "; ")}.`;
  const partners = partnersOf(expert);
  if (!page.coactivation) return text;
  const listed = partners.map(([other, count]) => `${other} (${tokens(count)} tokens)`).join(", ");
  return `${text} Most tokens above chance with ${listed || "no other expert"}.`;
}

// Experts with the most tokens together with this one above chance, at most five; counts are exact up to the quantization.
function partnersOf(expert) {
  if (!page.coactivation) return [];
  const { lift, counts } = layerPairs();
  return Array.from(lift[expert], (ratio, other) => [other, counts[expert][other], counts[expert][other] * (1 - 1 / ratio)])
    .filter(([other, , above]) => other !== expert && above > 0)
    .sort((a, b) => b[2] - a[2] || a[0] - b[0])
    .slice(0, NUM_PARTNERS);
}

// A frame around position `place` along one axis, over the whole length of the other one.
function frameAt(along, place) {
  const across = along === "x" ? "y" : "x";
  return {
    type: "rect", [`${across}ref`]: "paper", [`${across}0`]: 0, [`${across}1`]: 1, [`${along}0`]: place - 0.5,
    [`${along}1`]: place + 0.5, line: { color: colour("bound"), width: 2 }, fillcolor: "rgba(0,0,0,0)",
  };
}
