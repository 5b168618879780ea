"""Assigns whole experts to nodes so that tokens visit few nodes, by exact moves with a tabu list.

A token visits a node if one of its experts is there. ``alone[e, n]`` is the number of tokens of expert e that visit
node n for no expert but e; so moving e from node a to node b changes the visits by alone[e, b] - alone[e, a], exactly.
A move changes `alone` only for the other experts of e's tokens, at the two nodes.

The search takes the best move at every step, also when it makes things worse, and does not move that expert again for
some steps (Glover 1986, tabu search). Load above a node's cap and slots beyond its room are penalised; the weight of
the penalty rises while the node loads violate the caps and falls while they do not (strategic oscillation).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Floats, Ints, Map
from eplb.core.kernel_helpers import READ_FLOATS, READ_INTS, first_random, next_random
from eplb.strategies.traffic.token_lists_kernel import tokens_of_experts
from eplb_traces.jit import helper, njit

SHORTEST_TENURE, TENURES = 6, 12  # an expert that moved stays for 6 to 17 steps
STEPS_TO_ADAPT = 8  # the penalty changes after so many steps with, or without, a violation
ADAPTATION = 1.3
FIRST_PENALTY, LEAST_PENALTY, MOST_PENALTY = 0.5, 1e-3, 1e3
SLOT_PENALTY = 0.02  # of one slot too many, in node loads


class Tokens(NamedTuple):
    """Choices by token and tokens by expert."""

    first_choice: Ints  # [T + 1]
    choice: Map  # [choices] expert
    first_token: Ints  # [E + 1]
    token_of: Map  # [choices]


@helper
def _count_visits(tokens: Tokens, node: Ints, there: NDArray[np.int16], alone: Ints) -> int:
    """Fill `there` [T, N], the experts of a token on a node, and `alone` [E, N]; returns the visits."""
    there[:] = 0
    alone[:] = 0
    visits = 0
    num_nodes = there.shape[1]
    for token in range(there.shape[0]):
        begin, end = tokens.first_choice[token], tokens.first_choice[token + 1]
        for i in range(begin, end):
            there[token, node[tokens.choice[i]]] += 1
        for n in range(num_nodes):
            visits += there[token, n] > 0
        for i in range(begin, end):
            expert = tokens.choice[i]
            for n in range(num_nodes):
                if there[token, n] == (1 if node[expert] == n else 0):
                    alone[expert, n] += 1
    return visits


@helper
def _move(tokens: Tokens, node: Ints, there: NDArray[np.int16], alone: Ints, expert: int, target: int) -> None:
    """Move an expert to the node `target`."""
    source = node[expert]
    for i in range(tokens.first_token[expert], tokens.first_token[expert + 1]):
        token = tokens.token_of[i]
        left, met = there[token, source] - 1, there[token, target]
        there[token, source], there[token, target] = left, met + 1
        if left > 1 and met > 1:
            continue
        for j in range(tokens.first_choice[token], tokens.first_choice[token + 1]):
            other = tokens.choice[j]
            if other == expert:
                continue
            if left == (1 if node[other] == source else 0):
                alone[other, source] += 1
            if met == (1 if node[other] == target else 0):
                alone[other, target] -= 1
    node[expert] = target


@helper
def _excess(load: float, cap: float, slots: int, room: int) -> float:
    """How far a node is above its cap and its room, in node loads."""
    return max(0.0, load / cap - 1.0) + SLOT_PENALTY * max(0, slots - room)


@njit(
    f"Tuple((int64, float64))(int64[::1], int32[::1], {READ_FLOATS}, {READ_INTS}, {READ_FLOATS}, {READ_INTS},"
    f" {READ_INTS}, int64, uint64, int64[::1])"
)
def partition_experts(
    first_choice: Ints, choice: Map, load: Floats, slots: Ints, node_cap: Floats, node_room: Ints, node_least: Ints,
    num_steps: int, seed: int, node: Ints,
) -> tuple[int, float]:  # fmt: skip
    """Search for the assignment with the fewest visits among those with the least violation.

    Parameters
    ----------
    first_choice, choice
        [T + 1], [choices] the experts of each token.
    load, slots
        [E] tokens of each expert, and the slots that it needs.
    node_cap, node_room, node_least
        [N] most tokens and most slots of each node; fewest experts.
    num_steps
        Moves.
    seed
        Of the tabu tenures.
    node
        [E] node of each expert: in, the start; out, the best found.

    Returns
    -------
    tuple
        Visits (tokens x nodes), and by how much the caps and rooms are exceeded together, in node loads; 0 if not.
    """
    num_experts, num_nodes = load.size, node_cap.size
    tokens = Tokens(first_choice, choice, *tokens_of_experts(first_choice, choice, num_experts))
    there = np.zeros((first_choice.size - 1, num_nodes), np.int16)
    alone = np.zeros((num_experts, num_nodes), np.int64)
    visits = _count_visits(tokens, node, there, alone)
    node_load, node_slots, node_experts = (
        np.zeros(num_nodes),
        np.zeros(num_nodes, np.int64),
        np.zeros(num_nodes, np.int64),
    )
    for expert in range(num_experts):
        node_load[node[expert]] += load[expert]
        node_slots[node[expert]] += slots[expert]
        node_experts[node[expert]] += 1
    excess = np.empty(num_nodes)
    for n in range(num_nodes):
        excess[n] = _excess(node_load[n], node_cap[n], node_slots[n], node_room[n])
    best, best_visits, best_excess = node.copy(), visits, excess.sum()
    stays_until = np.zeros(num_experts, np.int64)
    penalty, streak, random = FIRST_PENALTY, 0, first_random(seed, 0)
    for step in range(num_steps):
        chosen, target, lowest = -1, -1, np.inf
        weight = penalty * there.shape[0] * 4
        for expert in range(num_experts):
            source = node[expert]
            if stays_until[expert] > step or node_experts[source] <= node_least[source]:
                continue
            relief = excess[source] - _excess(
                node_load[source] - load[expert], node_cap[source], node_slots[source] - slots[expert],
                node_room[source],
            )  # fmt: skip
            for n in range(num_nodes):
                if n == source:
                    continue
                growth = (
                    _excess(node_load[n] + load[expert], node_cap[n], node_slots[n] + slots[expert], node_room[n])
                    - excess[n]
                )
                cost = alone[expert, n] - alone[expert, source] + weight * (growth - relief)
                if cost < lowest:
                    chosen, target, lowest = expert, n, cost
        if chosen < 0:
            continue
        source = node[chosen]
        visits += alone[chosen, target] - alone[chosen, source]
        _move(tokens, node, there, alone, chosen, target)
        for n, sign in ((source, -1), (target, 1)):
            node_load[n] += sign * load[chosen]
            node_slots[n] += sign * slots[chosen]
            node_experts[n] += sign
            excess[n] = _excess(node_load[n], node_cap[n], node_slots[n], node_room[n])
        random = next_random(random)
        stays_until[chosen] = step + 1 + SHORTEST_TENURE + np.int64((random >> np.uint64(4)) % np.uint64(TENURES))
        total = excess.sum()
        streak = max(streak, 0) + 1 if total > 0 else min(streak, 0) - 1
        if abs(streak) >= STEPS_TO_ADAPT:
            penalty = penalty * ADAPTATION if streak > 0 else penalty / ADAPTATION
            penalty = min(MOST_PENALTY, max(LEAST_PENALTY, penalty))
            streak = 0
        if total < best_excess or (total == best_excess and visits < best_visits):
            best_visits, best_excess = visits, total
            best[:] = node
    node[:] = best
    return best_visits, best_excess
