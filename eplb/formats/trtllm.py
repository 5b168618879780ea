"""TensorRT-LLM's load balancer configuration, YAML.

From the loader (NVIDIA/TensorRT-LLM 1.2.1, ``MoeLoadBalancerConfig``): ``num_slots``, ``layer_updates_per_iter`` (0
is a static placement) and ``initial_global_assignments``, a list of ``num_slots`` ids under the absolute index of
each MoE layer; slot j is on rank ``j // (num_slots / ep_size)``. Any other key is refused, and a MoE layer without
a list is a KeyError.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.problem import Plan
from eplb.formats.engine_file import FileFacts, make_plan, open_foreign
from eplb.formats.engine_limits import check_equal_ranks, check_no_empty_slots, check_suffix, required_layer_ids
from eplb.formats.flat_yaml import read_assignments
from eplb.formats.protocol import ReadHints
from eplb.formats.sidecar import write_with_sidecar


@final
@dataclass(frozen=True)
class Trtllm:
    """TensorRT-LLM's lists under absolute layer ids."""

    name: ClassVar[str] = "trtllm"
    summary: ClassVar[str] = "TensorRT-LLM moe load_balancer, YAML: lists under absolute layer ids"
    suffixes: ClassVar[tuple[str, ...]] = (".yaml", ".yml")

    def read(self, path: Path, hints: ReadHints) -> Plan:
        """The plan with its layer ids; the number of ranks has to be given."""
        layer_ids, rows = read_assignments(path)
        file = open_foreign(path, self.name, _digested(layer_ids, rows), hints)
        return make_plan(file, rows, FileFacts(moe_layer_ids=layer_ids))

    def check(self, plan: Plan) -> None:
        """Refuse empty slots, uneven ranks and a plan that does not know its absolute layer ids."""
        check_no_empty_slots(self.name, plan.placement)
        check_equal_ranks(self.name, plan.placement)
        required_layer_ids(self.name, plan.shape)

    def write(self, plan: Plan, path: Path) -> None:
        """Write the YAML of a static placement, one layer a line, and the sidecar."""
        check_suffix(self.name, path, self.suffixes)
        self.check(plan)
        layer_ids = required_layer_ids(self.name, plan.shape)
        rows = plan.placement.physical_to_logical_map.astype(np.int64)
        lines = [f"  {layer}: {row}" for layer, row in zip(layer_ids, rows.tolist(), strict=True)]
        head = [f"num_slots: {rows.shape[1]}", "layer_updates_per_iter: 0", "initial_global_assignments:"]
        content = "\n".join([*head, *lines, ""]).encode("ascii")
        write_with_sidecar(path, content, _digested(layer_ids, rows), self.name, plan)

    def server_flags(self, path: Path, plan: Plan) -> str:
        """The lines of TensorRT-LLM's own configuration file that name this one."""
        return (
            "# TensorRT-LLM 1.2, in the file given to trtllm-serve --extra_llm_api_options, "
            f"with --ep_size {plan.placement.topology.num_ranks}\n"
            "enable_attention_dp: true\n"
            "moe_config:\n"
            "  backend: WideEP\n"
            f"  load_balancer: {path}"
        )


def _digested(layer_ids: tuple[int, ...], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """[L, 1 + P]: the layer id before each row, so that the digest tells the same map under other layers."""
    return np.column_stack([np.array(layer_ids, dtype=np.int64), rows])
