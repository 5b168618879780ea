"""Slow, plain reference implementations of the compiled code: lists and loops, nothing shared with what they check."""

from itertools import combinations, combinations_with_replacement, product

import numpy as np

# --- loads of ranks, placements ---------------------------------------------------------------------------------------


def hands_of(placement, layer):
    """The experts of each rank in slot order, -1 for an empty slot."""
    first = placement.topology.rank_first_slot.tolist()
    row = placement.physical_to_logical_map[layer].tolist()
    return [row[first[rank] : first[rank + 1]] for rank in range(placement.topology.num_ranks)]


def rank_loads(hands, load):
    """Tokens on each rank when every replica of an expert gets the same share of its load."""
    copies = [expert for hand in hands for expert in hand]
    return [sum(load[expert] / copies.count(expert) for expert in hand if expert >= 0) for hand in hands]


def busiest_time(hands, load, speeds=None):
    """Largest rank load over the rank's speed, speeds scaled to mean 1."""
    speeds = [1.0] * len(hands) if speeds is None else speeds
    mean = sum(speeds) / len(speeds)
    return max(tokens * mean / speed for tokens, speed in zip(rank_loads(hands, load), speeds, strict=True))


def has_doubles(hands):
    return any(hand.count(expert) > 1 for hand in hands for expert in hand if expert >= 0)


def every_layout(num_experts, room, *, alike, doubles=False, holes=False):
    """Every way to fill ranks of `room` slots with every expert somewhere; ranks that are `alike` in one order only."""
    symbols = range(-1 if holes else 0, num_experts)
    choose = combinations_with_replacement if doubles or holes else combinations
    contents = {size: [list(hand) for hand in choose(symbols, size)] for size in set(room)}
    if alike:
        layouts = combinations_with_replacement(contents[room[0]], len(room))
    else:
        layouts = product(*(contents[size] for size in room))
    for hands in layouts:
        if {expert for hand in hands for expert in hand if expert >= 0} == set(range(num_experts)):
            yield hands


# --- replica counts ---------------------------------------------------------------------------------------------------


def smallest_largest_copy(load, num_slots, max_copies):
    """The least load of the largest replica: the first of all loads / counts for which the replicas suffice."""
    if max(load) == 0:
        return 0.0
    for limit in sorted({tokens / copies for tokens in load for copies in range(1, max_copies + 1)}):
        needed = [next((c for c in range(1, max_copies + 1) if tokens / c <= limit), None) for tokens in load]
        if None not in needed and sum(needed) <= num_slots:
            return limit
    raise AssertionError("no count fits")


def greedy_counts(load, num_redundant, max_copies):
    """One replica each, then always one more for the expert with the most load a replica; ties to the lowest id."""
    count = [1] * len(load)
    for _ in range(num_redundant):
        open_experts = [expert for expert in range(len(load)) if count[expert] < max_copies]
        heaviest = max(open_experts, key=lambda expert: (load[expert] / count[expert], -expert))
        count[heaviest] += 1
    return count


# --- packing ----------------------------------------------------------------------------------------------------------


def pack_largest_first(load, count, room):
    """Experts by descending load a replica, all replicas at once on the least loaded open ranks; ties to the lowest id.

    An expert with several replicas goes before one with a single replica of the same load. Replicas that find no rank
    are placed by an exchange. Returns the experts of each rank, in the order in which they came.
    """
    hands, total = [[] for _ in room], [0.0] * len(room)
    for expert in sorted(range(len(load)), key=lambda e: (-load[e] / count[e], count[e] == 1, e)):
        value = load[expert] / count[expert]
        open_ranks = [rank for rank in range(len(room)) if len(hands[rank]) < room[rank]]
        chosen = sorted(open_ranks, key=lambda rank: (total[rank], rank))[: count[expert]]
        for rank in chosen:
            hands[rank].append((expert, value))
            total[rank] += value
        for _ in range(count[expert] - len(chosen)):
            _exchange_in(hands, total, room, (expert, value))
    return [[expert for expert, _ in hand] for hand in hands]


def _exchange_in(hands, total, room, copy):
    """The first rank without the expert takes the replica; the first open rank gets the first expert that it lacks."""
    free = next(rank for rank in range(len(room)) if len(hands[rank]) < room[rank])
    for rank, hand in enumerate(hands):
        if copy[0] in [expert for expert, _ in hand]:
            continue
        for i, other in enumerate(hand):
            if other[0] not in [expert for expert, _ in hands[free]]:
                hands[free].append(other)
                hand[i] = copy
                total[free] += other[1]
                total[rank] += copy[1] - other[1]
                return
    raise AssertionError("no exchange")


# --- descent ----------------------------------------------------------------------------------------------------------


def best_exchange(hands, load, *, size):
    """The lowest that the higher of two ranks can get when the busiest exchanges `size` experts with one other rank."""
    loads = rank_loads(hands, load)
    copies = [expert for hand in hands for expert in hand]
    unit = {expert: load[expert] / copies.count(expert) for expert in set(copies)}
    busiest = loads.index(max(loads))
    best = loads[busiest], None
    for partner in range(len(hands)):
        if partner == busiest:
            continue
        for give in combinations(hands[busiest], size):
            for take in combinations(hands[partner], size):
                if set(give) & set(hands[partner]) or set(take) & set(hands[busiest]):
                    continue
                moved = sum(unit[e] for e in give) - sum(unit[e] for e in take)
                higher = max(loads[busiest] - moved, loads[partner] + moved)
                if higher < best[0]:
                    best = higher, (busiest, partner, give, take)
    return best


def descend_by_single_exchanges(hands, load):
    """Exchange one expert of the busiest rank, always the best one, until nothing helps. Returns the busiest load."""
    hands = [list(hand) for hand in hands]
    while True:
        top = max(rank_loads(hands, load))
        higher, found = best_exchange(hands, load, size=1)
        if found is None or higher >= top * (1 - 1e-9):
            return top
        rank, partner, (given,), (taken,) = found
        hands[rank][hands[rank].index(given)] = taken
        hands[partner][hands[partner].index(taken)] = given


def best_move_of_a_copy(hands, load):
    """The lowest that the touched ranks can get when a replica elsewhere becomes an expert of the busiest rank."""
    loads = rank_loads(hands, load)
    busiest = loads.index(max(loads))
    copies = [expert for hand in hands for expert in hand]
    best = loads[busiest]
    for rank, hand in enumerate(hands):
        for i, giver in enumerate(hand):
            if rank == busiest or copies.count(giver) == 1:
                continue
            for taker in hands[busiest]:
                if taker in hand:
                    continue
                trial = [list(h) for h in hands]
                trial[rank][i] = taker
                touched = [r for r, h in enumerate(hands) if giver in h or taker in h]
                after = rank_loads(trial, load)
                best = min(best, max(after[r] for r in touched))
    return best


# --- DeepSeek's EPLB --------------------------------------------------------------------------------------------------


def published_packing(weight, num_packs):
    """Heaviest first into the lightest pack that has room. Returns the pack and the place in it of each item."""
    capacity = len(weight) // num_packs
    if capacity == 1:
        return list(range(num_packs)), [0] * num_packs
    packs, places = [0] * len(weight), [0] * len(weight)
    pack_weight, pack_size = [np.float32(0)] * num_packs, [0] * num_packs
    for item in np.argsort(-weight, kind="stable").tolist():
        pack = min((p for p in range(num_packs) if pack_size[p] < capacity), key=pack_weight.__getitem__)
        packs[item], places[item] = pack, pack_size[pack]
        pack_weight[pack] += weight[item]
        pack_size[pack] += 1
    return packs, places


def published_replication(weight, num_slots):
    """One replica each, then always one more for the first expert with the most weight a replica."""
    expert_of_copy, rank_of_copy = list(range(weight.size)), [0] * weight.size
    count = np.ones(weight.size, dtype=np.float32)
    for _ in range(weight.size, num_slots):
        heaviest = int(np.argmax(weight / count))
        expert_of_copy.append(heaviest)
        rank_of_copy.append(int(count[heaviest]))
        count[heaviest] += 1
    return expert_of_copy, rank_of_copy, count


def published_layer(weight, num_slots, num_groups, num_nodes, num_ranks):
    """One layer of the published function from its description: groups to nodes, replicas in a node, replicas to ranks.

    Returns the expert and the replica number of each slot.
    """
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    group_size, per_node = weight.size // num_groups, num_groups // num_nodes
    group_weight = np.array([weight[g * group_size : (g + 1) * group_size].sum() for g in range(num_groups)])
    node_of_group, place_of_group = published_packing(group_weight, num_nodes)
    expert_of_slot, replica_of_slot = [], []
    for node in range(num_nodes):
        groups = sorted((g for g in range(num_groups) if node_of_group[g] == node), key=place_of_group.__getitem__)
        assert len(groups) == per_node
        experts = [g * group_size + i for g in groups for i in range(group_size)]
        local = weight[experts]
        expert_of_copy, replica_of_copy, count = published_replication(local, num_slots // num_nodes)
        copy_weight = (local / count)[expert_of_copy]
        packs, places = published_packing(copy_weight, num_ranks // num_nodes)
        for copy in sorted(range(len(packs)), key=lambda c: (packs[c], places[c])):
            expert_of_slot.append(experts[expert_of_copy[copy]])
            replica_of_slot.append(replica_of_copy[copy])
    return expert_of_slot, replica_of_slot


def published_rebalance(weight, num_slots, num_groups, num_nodes, num_ranks):
    """phy2log [L, P], log2phy [L, E, X], logcnt [L, E] of the published function, in single precision."""
    weight = np.asarray(weight, dtype=np.float32)
    layers = [published_layer(row, num_slots, num_groups, num_nodes, num_ranks) for row in weight]
    phy2log = np.array([experts for experts, _ in layers])
    logcnt = np.array([np.bincount(experts, minlength=weight.shape[1]) for experts, _ in layers])
    log2phy = np.full((*weight.shape, logcnt.max()), -1)
    for layer, (experts, replicas) in enumerate(layers):
        for slot, (expert, replica) in enumerate(zip(experts, replicas, strict=True)):
            log2phy[layer, expert, replica] = slot
    return phy2log, log2phy, logcnt
