"""AllGather, the layout and reduce kernels of the symmetric exchange, reduce-scatter: for graphs without peer memory.

    Q processes   T tokens of a process (capacity)   K choices   M rows (capacity)   H hidden   S slots of this process
    D = Q*T tokens after the gather

    x_TH, slots, weights --AllGather--> D tokens --kernels--> rows_MH -> experts -> y_MH --kernels--> partial sums
    out_TH <----------------------------------- reduce-scatter ------------------------------------------'

To the kernels the D tokens are those of one rank that has only the slots of this process.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.expert_rows import packed_choices, unpacked_choices
from eplb.runtime.exchange.protocol import check_epochs
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.availability import kernel_refusal
from eplb.runtime.exchange.symmetric.fixed_exchange import ExchangeMode, FixedExchange
from eplb.runtime.exchange.symmetric.memory import SymmetricMemory
from eplb.runtime.exchange.symmetric.region import BufferSizes, RegionShape
from eplb.runtime.exchange.symmetric.settings import KernelSettings
from eplb.runtime.exchange.symmetric.state import RankState


@final
@dataclass(frozen=True, eq=False)
class CollectiveBuffers:
    """The buffers of one process; write the inputs in place, then call or replay.

    Parameters
    ----------
    group
        The processes.
    local
        The exchange of this process with itself, for the tokens of all.
    """

    group: RankGroup
    local: FixedExchange
    slot_TK: Tensor
    weight_TK: Tensor
    map_epoch: Tensor
    num_tokens: Tensor
    map_epochs_Q: Tensor
    """[Q] int64 epoch of the maps of every process, written by `dispatch`."""
    name: ClassVar[str] = "allgather, reduce-scatter"

    @classmethod
    def create(
        cls, group: RankGroup, sizes: BufferSizes, dtype: torch.dtype, device: torch.device
    ) -> "CollectiveBuffers":
        """Allocate the buffers, compile and load the kernels.

        Raises
        ------
        InputError
            With the reason, if the kernels cannot run on the device.
        """
        if refusal := kernel_refusal(device):
            raise InputError(f"buffers of collectives: {refusal}")
        tokens, top_k = sizes.tokens, sizes.top_k
        shape = RegionShape(1, group.num_processes * tokens, top_k, sizes.hidden, sizes.element_bytes)
        # One rank receives no rows and stages no sums, so that the region ends before them.
        region = torch.zeros(shape.offsets["recv"], dtype=torch.uint8, device=device)
        memory = SymmetricMemory(0, (region,), torch.tensor([region.data_ptr()], dtype=torch.int64, device=device))
        state = RankState.of_region(memory, shape, (0, len(group.slots)), max_rows=None, timeout_s=10.0)
        buffers = cls(
            group,
            FixedExchange.of_state(state, dtype, ExchangeMode.NORMAL, KernelSettings.default()),
            torch.full((tokens, top_k), -1, dtype=torch.int64, device=device),
            torch.zeros((tokens, top_k), device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
            torch.zeros(group.num_processes, dtype=torch.int64, device=device),
        )
        buffers.local.set_tokens(shape.tokens)
        return buffers

    @property
    def rows_MH(self) -> Tensor:
        """See `FixedBuffers`."""
        return self.local.rows_MH

    @property
    def ends_S(self) -> Tensor:
        """See `FixedBuffers`."""
        return self.local.ends_S

    def dispatch(self, x_TH: Tensor) -> Tensor:
        """See `FixedBuffers`."""
        own, num_slots = self.group.slots, self.group.topology.num_slots
        slot_DK, weight_DK = self._gathered_choices()
        is_own_DK = (slot_DK >= own.start) & (slot_DK < own.stop)
        local_DK = torch.where(is_own_DK, slot_DK - own.start, -1)
        # A slot that does not exist is none of this process either, and the kernels report it.
        self.local.slot_TK.copy_(torch.where(slot_DK >= num_slots, len(own), local_DK))
        self.local.weight_TK.copy_(weight_DK)
        return self.local.dispatch(self.group.all_gather(x_TH).flatten(0, 1))

    def combine(self, y_MH: Tensor) -> Tensor:
        """See `FixedBuffers`."""
        partial_DH = self.local.combine(y_MH)
        return self.group.reduce_scatter(partial_DH.view(self.group.num_processes, -1, partial_DH.shape[1]))

    def raise_on_error(self) -> None:
        """Raise what the kernels of this process reported; the host waits for the device.

        Raises
        ------
        ExchangeOverflowError
            If a slot does not exist.
        ExchangeEpochError
            If the processes routed the last batch by different maps.
        """
        self.local.raise_on_error()
        check_epochs(self.map_epochs_Q.tolist())

    def _gathered_choices(self) -> tuple[Tensor, Tensor]:
        """[D, K] slots and weights of all tokens; the epoch of the maps travels with them as one more token."""
        num_tokens, top_k = self.slot_TK.shape
        is_real_T1 = (torch.arange(num_tokens, device=self.slot_TK.device) < self.num_tokens)[:, None]
        own_T2K = packed_choices(torch.where(is_real_T1, self.slot_TK, -1), self.weight_TK)
        epoch_12K = self.map_epoch.to(torch.int32).expand(1, 2, top_k)
        all_QU2K = self.group.all_gather(torch.cat([own_T2K, epoch_12K]))
        self.map_epochs_Q.copy_(all_QU2K[:, -1, 0, 0])
        return unpacked_choices(all_QU2K[:, :-1].flatten(0, 1))
