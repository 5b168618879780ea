"""Knows how processes see the same counts and prove that they decide the same; decides nothing."""

import torch
from torch import Tensor

from eplb.errors import VerificationError
from eplb.runtime.exchange.rank_group import RankGroup

_DIGEST_BITS = 63


def summed_counts(counts: Tensor, ranks: RankGroup) -> Tensor:
    """[*] int64 on the CPU: the counts of all processes together, the same on each of them.

    Parameters
    ----------
    counts
        [*] integers of this process, of the same shape everywhere, on a device that the communicator moves.
    ranks
        The processes.
    """
    total: Tensor = ranks.all_gather(counts.to(torch.int64)).sum(dim=0).cpu()
    return total


def check_agreement(digest: int, ranks: RankGroup, device: torch.device | str = "cpu") -> None:
    """Compare a digest, such as `Rebalancer.digest()`, over all processes.

    Parameters
    ----------
    digest
        63 bits of what has to be the same.
    ranks
        The processes.
    device
        Where tensors live that the communicator moves.

    Raises
    ------
    VerificationError
        On every process, if one has another digest. The caller must not migrate then.
    """
    mine = torch.tensor([digest & ((1 << _DIGEST_BITS) - 1)], dtype=torch.int64, device=device)
    digests = ranks.all_gather(mine).flatten().tolist()
    for process, other in enumerate(digests):
        if other != digests[0]:
            raise VerificationError(
                f"process {process} has digest {other:016x}, process 0 has {digests[0]:016x}: "
                "expected the same counts and decisions on all"
            )
