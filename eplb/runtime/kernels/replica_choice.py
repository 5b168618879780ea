"""Launches the replica choice on the device: one kernel, without a wait of the host, for captured graphs."""

from torch import Tensor

from eplb.core.dispatch_rule import DispatchRule
from eplb.errors import InputError
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource

_BLOCK = 256
_CHUNK = 64
DEVICE_RULES = tuple(rule for rule in DispatchRule if rule is not DispatchRule.ONLINE)
"""Rules that the kernel executes; `online` needs the counts of all ranks, see `online_quotas_on_device`."""


def choose_slots_on_device(
    expert_ids_TK: Tensor, source: TokenSource, tables: PlacementTables, layer: int, out_TK: Tensor
) -> None:
    """Write the slot of each selection; the tables are read when the kernel runs, so a replay follows their updates.

    Parameters
    ----------
    expert_ids_TK
        [T, K] int64 logical experts; -1 is a masked selection.
    source
        Where the tokens came from.
    tables
        The maps in force.
    layer
        The layer.
    out_TK
        [T, K] int64 slots; the number of slots, which no exchange accepts, for an expert without a
        replica, or that does not exist.

    Raises
    ------
    InputError
        For a rule that the kernel does not have, slots that are not contiguous, or a source with another number of
        tokens.
    """
    source.check_tokens(expert_ids_TK.shape[0])
    if tables.rule not in DEVICE_RULES:
        raise InputError(
            f"replica rule {tables.rule} on the device: expected one of {', '.join(DEVICE_RULES)}; use choose_slots"
        )
    if not out_TK.is_contiguous():
        raise InputError(f"slots with strides {out_TK.stride()}: expected a contiguous tensor")
    from eplb.runtime.kernels.replica_choice_kernel import (
        BY_RANK,
        BY_ROW,
        BY_TOKEN_HASH,
        EVEN,
        FIRST_ON_NODE,
        LOCAL_FIRST,
        ROUND_ROBIN,
        WEIGHTED,
        choose_slots_kernel,
    )

    rules = {
        DispatchRule.EVEN: EVEN,
        DispatchRule.WEIGHTED: WEIGHTED,
        DispatchRule.LOCAL_FIRST: LOCAL_FIRST,
        DispatchRule.SGLANG_DYNAMIC: FIRST_ON_NODE,
        DispatchRule.SGLANG_BY_ROW: BY_ROW,
        DispatchRule.VLLM: BY_TOKEN_HASH,
        DispatchRule.ASCEND: BY_RANK,
        DispatchRule.SGLANG_STATIC: BY_RANK,
        DispatchRule.TRTLLM: ROUND_ROBIN,
    }
    selections = expert_ids_TK.numel()
    choose_slots_kernel[(max(-(-selections // _BLOCK), 1),)](
        expert_ids_TK.contiguous(),
        out_TK,
        source.rank_T,
        source.index_T,
        tables.log2phy_LEX[layer],
        tables.logcnt_LE[layer],
        tables.weight_bound_LEX[layer],
        tables.rank_of_slot_P,
        tables.node_of_rank_R,
        tables.rank_slot_LRE[layer],
        tables.epoch_L[layer:],
        selections,
        tables.topology.num_slots,
        tables.num_experts,
        tables.log2phy_LEX.shape[2],
        K=expert_ids_TK.shape[1],
        RULE=int(rules[tables.rule].value),
        BLOCK=_BLOCK,
        CHUNK=_CHUNK,
        num_warps=4,
    )
