"""Executes a placement on `torch.distributed` and proves it; the only room that knows torch.

A layer is a gate, tables, a backend and experts (`MoeLayer`); `verify` executes a plan on processes and checks them.
"""

try:
    import torch  # noqa: F401  # asked for here, so that one sentence says what is missing
except ImportError as error:
    from eplb.errors import MissingExtraError

    raise MissingExtraError("the runtime", "runtime") from error

from eplb.runtime.exchange.allgather import AllGather
from eplb.runtime.exchange.alltoall import AllToAll
from eplb.runtime.exchange.backend_choice import auto_backend, exchange_bytes, make_backend
from eplb.runtime.exchange.protocol import (
    Backend,
    ExchangeEpochError,
    ExchangeHandle,
    ExchangeLimits,
    ExchangeOverflowError,
    Overflow,
    RoutingPlan,
    read_buffer_scale_factors,
)
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.reference import Reference
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
from eplb.runtime.layer.moe_layer import MoeLayer, MoeResult, SlotExperts, route
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource, choose_slots, online_quotas
from eplb.runtime.live_migration import LiveMigration, MigrationError, migrate
from eplb.runtime.verification.injected_faults import CAUGHT_BY, Fault
from eplb.runtime.verification.launch import Launch, Member, run_processes
from eplb.runtime.verification.verify import VerifyReport, VerifyRequest, read_layers, verify
from eplb.runtime.weights.expert_weights import BankShape, ExpertBank

__all__ = [
    "CAUGHT_BY",
    "AllGather",
    "AllToAll",
    "Backend",
    "BankShape",
    "ExchangeEpochError",
    "ExchangeHandle",
    "ExchangeLimits",
    "ExchangeOverflowError",
    "ExpertBank",
    "Fault",
    "Gate",
    "GateChoice",
    "GroupLimit",
    "HashGate",
    "Launch",
    "LiveMigration",
    "Member",
    "MigrationError",
    "MoeLayer",
    "MoeResult",
    "Overflow",
    "PlacementTables",
    "RankGroup",
    "Reference",
    "RoutingPlan",
    "SigmoidGroupGate",
    "SlotExperts",
    "SoftmaxGate",
    "TokenSource",
    "VerifyReport",
    "VerifyRequest",
    "auto_backend",
    "choose_slots",
    "exchange_bytes",
    "hash_table",
    "make_backend",
    "migrate",
    "online_quotas",
    "rank_limited_top_k",
    "read_buffer_scale_factors",
    "read_layers",
    "route",
    "run_processes",
    "verify",
]
