// The address names what is shown: #layer=7&plan=1&expert=17. Numbers count from 0.

function writeAddress() {
  const parts = { layer: state.layer, plan: page.plans.length ? state.plan : null, expert: state.expert };
  const text = Object.entries(parts).filter(([, value]) => value !== null).map(([name, value]) => `${name}=${value}`).join("&");
  if (location.hash !== `#${text}`) history.replaceState(null, "", `#${text}`);
}

// Sets the state from the address. What it names and the page lacks is refused by name, the rest is used.
function readAddress() {
  const counts = { layer: page.model.num_layers, plan: page.plans.length, expert: page.model.num_experts };
  const problems = [];
  new URLSearchParams(location.hash.slice(1)).forEach((text, name) => {
    const value = Number(text);
    if (!(name in counts)) problems.push(`#${name}: expected layer, plan or expert`);
    else if (text === "" || !Number.isInteger(value) || value < 0 || value >= counts[name]) {
      problems.push(`#${name}=${text}: expected ${counts[name] ? `0 to ${counts[name] - 1}` : "none, nothing is planned"}`);
    } else state[name] = value;
  });
  byId("problem").hidden = problems.length === 0;
  byId("problem").textContent = problems.join("; ");
}
