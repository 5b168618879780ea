"""DeepSeek's `rebalance_experts` with the same name, arguments and result; torch tensors in, torch tensors out."""

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import GroupMode
from eplb.engines.arrays import Array, as_load, like
from eplb.errors import InputError
from eplb.strategies.baselines.deepseek import deepseek_maps


def rebalance_experts(  # noqa: PLR0913  # the published signature
    weight: Array,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    *,
    strategy: str = "deepseek",
) -> tuple[Array, Array, Array]:
    """Plan every layer with DeepSeek's EPLB algorithm or another strategy.

    Parameters
    ----------
    weight
        [layers, num_logical_experts] load of each expert.
    num_replicas
        Physical experts; a multiple of `num_gpus`.
    num_groups
        Expert groups. If `num_nodes` divides it, the policy is hierarchical, otherwise global, as published.
    num_nodes, num_gpus
        Number of nodes, and of GPUs of all nodes.
    strategy
        "deepseek" gives the result of the published algorithm slot by slot; otherwise a name of `eplb.strategies`.

    Returns
    -------
    tuple
        `physical_to_logical_map` [layers, num_replicas], `logical_to_physical_map`
        [layers, num_logical_experts, X] padded with -1, `expert_count` [layers, num_logical_experts]; int64.

    Raises
    ------
    InputError
        If the published function would fail an assertion, and for a load that is not finite and >= 0.

    Examples
    --------
    >>> import eplb
    >>> import numpy as np
    >>> load = np.array([[9.0, 3.0, 2.0, 2.0]])
    >>> phy2log, log2phy, count = eplb.rebalance_experts(load, 6, 1, 1, 2)
    >>> phy2log
    array([[0, 0, 2, 1, 0, 3]])
    >>> count
    array([[3, 1, 1, 1]])
    """
    load: NDArray[np.float64] = as_load(weight)
    check_counts(load.shape[1], num_replicas, num_groups, num_nodes, num_gpus)
    hierarchical = num_groups % num_nodes == 0
    if strategy == "deepseek":
        groups, nodes = (num_groups, num_nodes) if hierarchical else (1, 1)
        phy2log, replica, logcnt = deepseek_maps(
            load, num_replicas, num_groups=groups, num_nodes=nodes, num_ranks=num_gpus
        )
        log2phy = np.full((*load.shape, int(logcnt.max())), -1, dtype=np.int64)
        log2phy[np.arange(load.shape[0])[:, None], phy2log, replica] = np.arange(num_replicas)
    else:
        phy2log, log2phy, logcnt = _planned(load, num_replicas, num_groups, num_nodes, num_gpus, strategy)
    return like(weight, phy2log), like(weight, log2phy), like(weight, logcnt)


def _planned(  # noqa: PLR0913  # the published signature
    load: NDArray[np.float64], num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int, strategy: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    from eplb.core.topology import Topology
    from eplb.planning.planner import plan
    from eplb_traces import ExpertLoad

    topology = Topology(num_nodes, num_gpus // num_nodes, num_replicas // num_gpus)
    mode = GroupMode.PINNED if num_groups > 1 and num_groups % num_nodes == 0 else GroupMode.FREE
    return plan(ExpertLoad(load), topology, strategy, groups=num_groups, group_mode=mode).placement.maps()


def check_counts(num_experts: int, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int) -> None:
    """Raise InputError if the published function would fail an assertion, in the same order."""
    for name, count in (("num_groups", num_groups), ("num_nodes", num_nodes), ("num_gpus", num_gpus)):
        if count < 1:
            raise InputError(f"{name} = {count}: expected >= 1")
    if num_groups % num_nodes == 0 and num_experts % num_groups:
        raise InputError(f"{num_experts} experts: expected a multiple of num_groups = {num_groups}")
    if num_gpus % num_nodes:
        raise InputError(f"num_gpus = {num_gpus}: expected a multiple of num_nodes = {num_nodes}")
    if num_replicas % num_gpus:
        raise InputError(f"num_replicas = {num_replicas}: expected a multiple of num_gpus = {num_gpus}")
    if num_replicas < num_experts:
        raise InputError(f"num_replicas = {num_replicas}: expected at least {num_experts} experts")
