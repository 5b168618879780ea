"""Executes a placement on `torch.distributed`, migrates it while it runs, and verifies it. Requires torch.

A layer is a gate, placement tables, an exchange backend and experts (`MoeLayer`); `MoeLayer.captured` holds it in a
CUDA graph, with the buffers of `fixed_buffers`. `parallelize` puts a plan under a Hugging Face model. `migrate` and
`LiveMigration` move running layers to another placement. `verify` executes a plan on processes and checks the result.
"""

try:
    import torch  # noqa: F401  # a missing extra is reported here, once
except ImportError as error:
    from eplb.errors import MissingExtraError

    raise MissingExtraError("the runtime", "runtime") from error

from eplb.runtime.agreement import check_agreement, summed_counts
from eplb.runtime.exchange.allgather import AllGather
from eplb.runtime.exchange.alltoall import AllToAll
from eplb.runtime.exchange.backend_choice import (
    BackendChoice,
    auto_backend,
    choose_backend,
    exchange_bytes,
    make_backend,
)
from eplb.runtime.exchange.collective_buffers import CollectiveBuffers
from eplb.runtime.exchange.fixed_buffers import BuffersChoice, fixed_buffers
from eplb.runtime.exchange.limits import ExchangeLimits, ExchangeOverflowError, Overflow, read_buffer_scale_factors
from eplb.runtime.exchange.protocol import Backend, ExchangeEpochError, ExchangeHandle, FixedBuffers, RoutingPlan
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.reference import Reference
from eplb.runtime.exchange.static_rows import StaticRows
from eplb.runtime.exchange.symmetric.backend import Symmetric
from eplb.runtime.exchange.symmetric.failures import ExchangeTimeoutError
from eplb.runtime.exchange.symmetric.fixed_exchange import ExchangeMode, FixedExchange
from eplb.runtime.exchange.symmetric.mode_trial import ModeTrials, time_modes
from eplb.runtime.exchange.symmetric.region import BufferSizes
from eplb.runtime.experts.slot_experts import SlotExperts
from eplb.runtime.experts.timed_experts import TimedExperts, Trial
from eplb.runtime.layer.captured import CapturedLayers
from eplb.runtime.layer.fused_gate import FusedGate
from eplb.runtime.layer.gate import (
    Gate,
    GateChoice,
    GroupLimit,
    HashGate,
    SigmoidGroupGate,
    SoftmaxGate,
    hash_table,
    rank_limited_top_k,
)
from eplb.runtime.layer.moe_layer import MoeLayer, MoeResult
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource, choose_slots, online_quotas
from eplb.runtime.layer.routing import route
from eplb.runtime.layer.tensor_parallel import TensorParallelLayer
from eplb.runtime.live_migration import LiveMigration, MigrationError, PushingExperts, Transport, migrate
from eplb.runtime.model.moe_blocks import model_shape
from eplb.runtime.model.parallelize import ParallelModel, parallelize
from eplb.runtime.verification.injected_faults import CAUGHT_BY, Fault
from eplb.runtime.verification.launch import Launch, Member, run_processes
from eplb.runtime.verification.verify import verify
from eplb.runtime.verification.verify_report import VerifyReport
from eplb.runtime.verification.verify_request import VerifyRequest, read_layers
from eplb.runtime.weights.checkpoint import CheckpointError, SafetensorsCheckpoint, StateDict
from eplb.runtime.weights.expert_weights import ExpertWeights, ExpertWeightsShape, GateUpLayout
from eplb.runtime.weights.quantization import Dense, Fp4Blocks, Fp8Blocks
from eplb.runtime.weights.recode import experts_as_fp8
from eplb.runtime.weights.shards import Shard
from eplb.runtime.weights.weight_loading import load_experts, slot_experts

__all__ = [
    "CAUGHT_BY",
    "AllGather",
    "AllToAll",
    "Backend",
    "BackendChoice",
    "BufferSizes",
    "BuffersChoice",
    "CapturedLayers",
    "CheckpointError",
    "CollectiveBuffers",
    "Dense",
    "ExchangeEpochError",
    "ExchangeHandle",
    "ExchangeLimits",
    "ExchangeMode",
    "ExchangeOverflowError",
    "ExchangeTimeoutError",
    "ExpertWeights",
    "ExpertWeightsShape",
    "Fault",
    "FixedBuffers",
    "FixedExchange",
    "Fp4Blocks",
    "Fp8Blocks",
    "FusedGate",
    "Gate",
    "GateChoice",
    "GateUpLayout",
    "GroupLimit",
    "HashGate",
    "Launch",
    "LiveMigration",
    "Member",
    "MigrationError",
    "ModeTrials",
    "MoeLayer",
    "MoeResult",
    "Overflow",
    "ParallelModel",
    "PlacementTables",
    "PushingExperts",
    "RankGroup",
    "Reference",
    "RoutingPlan",
    "SafetensorsCheckpoint",
    "Shard",
    "SigmoidGroupGate",
    "SlotExperts",
    "SoftmaxGate",
    "StateDict",
    "StaticRows",
    "Symmetric",
    "TensorParallelLayer",
    "TimedExperts",
    "TokenSource",
    "Transport",
    "Trial",
    "VerifyReport",
    "VerifyRequest",
    "auto_backend",
    "check_agreement",
    "choose_backend",
    "choose_slots",
    "exchange_bytes",
    "experts_as_fp8",
    "fixed_buffers",
    "hash_table",
    "load_experts",
    "make_backend",
    "migrate",
    "model_shape",
    "online_quotas",
    "parallelize",
    "rank_limited_top_k",
    "read_buffer_scale_factors",
    "read_layers",
    "route",
    "run_processes",
    "slot_experts",
    "summed_counts",
    "time_modes",
    "verify",
]
