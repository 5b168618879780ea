"""Sums counts over processes and checks that all processes made the same decision."""

import torch
from torch import Tensor

from eplb.errors import VerificationError
from eplb.runtime.exchange.rank_group import RankGroup

_DIGEST_BITS = 63


def summed_counts(counts: Tensor, ranks: RankGroup) -> Tensor:
    """[*] int64 on the CPU: the sum over all processes, the same on each process.

    Parameters
    ----------
    counts
        [*] integers of this process, of the same shape on all processes, on a device that the communicator supports.
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
        63-bit digest of the decision.
    ranks
        The processes.
    device
        A device that the communicator supports.

    Raises
    ------
    VerificationError
        On every process, if the digests differ. The caller must not migrate then.
    """
    mine = torch.tensor([digest & ((1 << _DIGEST_BITS) - 1)], dtype=torch.int64, device=device)
    digests = ranks.all_gather(mine).flatten().tolist()
    for process, other in enumerate(digests):
        if other != digests[0]:
            raise VerificationError(
                f"process {process} has digest {other:016x}, process 0 has {digests[0]:016x}: "
                "expected the same counts and decisions on all"
            )
