"""A router whose choice is one kernel after the GEMM, for captured layers.

T tokens   E logical experts   K choices   H hidden
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.symmetric.availability import kernel_refusal
from eplb.runtime.kernels.top_k import sigmoid_group_top_k_on_device, softmax_top_k_on_device
from eplb.runtime.layer.gate import GateChoice, SigmoidGroupGate, SoftmaxGate


@final
@dataclass(frozen=True)
class FusedGate:
    """A `SoftmaxGate` with normalised weights, or a `SigmoidGroupGate`, in one GEMM and one kernel.

    Scores differ from the gate's in the last bit, so a choice may differ between experts with nearly equal scores.
    Where the kernels cannot run (`reason` names it), the gate itself is called.

    Parameters
    ----------
    gate
        The router.

    Raises
    ------
    InputError
        For a softmax whose weights are not normalised.
    """

    gate: SoftmaxGate | SigmoidGroupGate

    def __post_init__(self) -> None:
        if isinstance(self.gate, SoftmaxGate) and not self.gate.normalise:
            raise InputError("fused gate: the softmax kernel normalises its weights, expected normalise = True")

    @property
    def reason(self) -> str:
        """Why the kernels cannot run on the device of the router; empty if they can."""
        return kernel_refusal(self.gate.router_EH.device)

    def __call__(self, x_TH: Tensor, token_ids_T: Tensor) -> GateChoice:
        """Choose experts by hidden states."""
        if self.reason:
            return self.gate(x_TH, token_ids_T)
        logits_TE = self._logits(x_TH)
        shape = (x_TH.shape[0], self.gate.top_k)
        expert_ids_TK = torch.empty(shape, dtype=torch.int64, device=x_TH.device)
        weight_TK = torch.empty(shape, dtype=torch.float32, device=x_TH.device)
        if isinstance(self.gate, SoftmaxGate):
            softmax_top_k_on_device(logits_TE, expert_ids_TK, weight_TK)
        else:
            bias_E = self.gate.bias_E.float().contiguous()
            limit, scale = self.gate.limit, self.gate.scale
            sigmoid_group_top_k_on_device(logits_TE, bias_E, expert_ids_TK, weight_TK, limit=limit, scale=scale)
        return GateChoice(expert_ids_TK, weight_TK)

    def _logits(self, x_TH: Tensor) -> Tensor:
        """[T, E] float32; bf16 on a GPU is multiplied as it is and summed in float32."""
        router_EH = self.gate.router_EH
        if x_TH.is_cuda and x_TH.dtype == router_EH.dtype == torch.bfloat16:
            return torch.mm(x_TH, router_EH.T, out_dtype=torch.float32)
        return x_TH.float() @ router_EH.float().T
