"""Plans and loads of fixed inputs as text that is equal if they are; as a script, prints them as JSON.

`python -m tests.reproducible.plans > tests/golden/plans.json` renews the golden plans.
"""

import hashlib
import json

import numpy as np

import eplb
from eplb_traces.routing_trace import TokenBatch
from eplb_traces.synthetic.synthetic import synthesize_load, synthesize_trace

TOPOLOGY = eplb.Topology(2, 2, 6)
UNEQUAL = eplb.Topology(2, (3, 2), (5, 4, 5, 4, 6), (1.0, 0.5, 1.0, 2.0, 1.0))
NUM_LAYERS, NUM_EXPERTS, NUM_WINDOWS = 3, 16, 9


def load():
    """[9, 3, 16] whole numbers from a formula, no random generator: the hot experts move slowly."""
    window, layer, expert = np.indices((NUM_WINDOWS, NUM_LAYERS, NUM_EXPERTS))
    return eplb.ExpertLoad((expert * 7919 + layer * 104729 + window // 3 * 15485863) % 1009 + (expert == layer) * 3000)


def trace():
    token, layer, choice = np.indices((200, NUM_LAYERS, 3))
    ids = (token * (layer + 3) // 7 + choice * (1 + token % 5)) % NUM_EXPERTS
    shape = eplb.ModelShape(NUM_LAYERS, NUM_EXPERTS, 3, num_expert_groups=4)
    steps, requests = np.zeros(200, np.int64), np.arange(200) // 20
    return eplb.RoutingTrace(shape, [TokenBatch(shape, ids.astype(np.uint16), steps, requests)])


def asked():
    """{name: arguments of `plan`}"""
    cases = {
        name: {"strategy": name}
        for name in ("linear", "round_robin", "zigzag", "deepseek", "greedy", "scenario", "biased", "auto")
    }
    for rule in ("weighted", "online", "sglang_static", "trtllm", "vllm"):
        cases[f"greedy {rule}"] = {"strategy": "greedy", "dispatch": rule}
    cases["greedy pinned"] = {"strategy": "greedy", "groups": 4, "group_mode": "pinned"}
    cases["greedy priced"] = {"strategy": "greedy", "groups": 4, "group_mode": "priced", "group_price": 0.01}
    cases["greedy survive rank"] = {"strategy": "greedy", "survive": "rank", "topology": eplb.Topology(2, 2, 9)}
    cases["traffic"] = {"strategy": "traffic", "trace": trace(), "groups": 4}
    for name in ("greedy", "scenario"):
        cases[f"{name} unequal"] = {"strategy": name, "topology": UNEQUAL}
    return cases


def text_of(plan):
    """Slots, shares and claims; floats to the last bit."""
    text = [" ".join(map(str, row)) for row in plan.placement.physical_to_logical_map.tolist()]
    shares = plan.placement.replica_weights
    if shares is not None:
        text.append("shares " + hashlib.sha256(shares.astype("<f8").tobytes()).hexdigest())
    claims = (f"{claim.objective.hex()} {claim.lower_bound.hex()} {claim.binding_bound}" for claim in plan.layers)
    return [*text, *claims]


def plans():
    """{name: lines}"""
    given = load()
    made = {}
    for name, options in asked().items():
        made[name] = eplb.plan(given, **{"topology": TOPOLOGY, **options})
    later = eplb.ExpertLoad(given.tokens[-1:])
    made["rebalance"] = eplb.rebalance(made["greedy"].placement, later, target=1.0)
    made["rebalance few moves"] = eplb.rebalance(made["greedy"].placement, later, target=1.0, max_moves=2)
    return {name: text_of(plan) for name, plan in made.items()}


def synthetic():
    """{name: digest} of synthetic loads and traces; other versions of numpy may draw other numbers."""
    shape = eplb.ModelShape(2, 64, 6, num_expert_groups=8, top_k_groups=4)
    found = {}
    for name in ("v3-prefill", "v3-decode", "lognormal"):
        found[f"load {name}"] = synthesize_load(name, shape=shape, num_windows=2, tokens_per_window=500).digest
        ids = [batch.expert_ids for batch in synthesize_trace(name, shape=shape, num_steps=2, tokens_per_step=200)]
        found[f"trace {name}"] = hashlib.sha256(np.concatenate(ids).tobytes()).hexdigest()
    return found


if __name__ == "__main__":
    import sys

    content = plans() if sys.argv[1:] != ["all"] else {**plans(), "synthetic": synthetic()}
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
