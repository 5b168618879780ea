"""Orders and clusters experts by affinity."""

import numpy as np
from numpy.typing import NDArray


def leaf_order(affinity: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Order the leaves of the average-linkage tree so that neighbours are as alike as possible.

    Parameters
    ----------
    affinity
        [E, E] > 0, symmetric: 1 is none.
    known
        [E] experts whose affinity is known; the others come last, in their own order.

    Returns
    -------
    NDArray
        [E] experts.
    """
    from scipy.cluster.hierarchy import leaves_list

    experts = np.flatnonzero(known)
    if experts.size > 1:
        experts = experts[leaves_list(_tree(affinity[np.ix_(experts, experts)]))]
    return np.concatenate([experts, np.flatnonzero(~known)])


def cut_tree(affinity: NDArray[np.float64], known: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Cut that tree into at most `count` groups, numbered from 0 in the order of the leaves.

    Returns
    -------
    NDArray
        [E]; experts that are not `known` are in the last group.
    """
    from scipy.cluster.hierarchy import fcluster, leaves_list

    experts = np.flatnonzero(known)
    group = np.zeros(known.size, dtype=np.int64)
    if experts.size > 1 and count > 1:
        tree = _tree(affinity[np.ix_(experts, experts)])
        found = fcluster(tree, count, criterion="maxclust").tolist()
        in_leaf_order = list(dict.fromkeys(found[leaf] for leaf in leaves_list(tree)))
        group[experts] = [in_leaf_order.index(of_expert) for of_expert in found]
    group[~known] = group.max()
    return group


def _tree(affinity: NDArray[np.float64]) -> NDArray[np.float64]:
    """The linkage of experts at the distance 1 / (1 + affinity)."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = 1.0 / (1.0 + affinity)
    np.fill_diagonal(distance, 0.0)
    tree: NDArray[np.float64] = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return tree
