"""Executes a placement on `torch.distributed` and proves it; the only room that knows torch.

A layer is a gate, tables, a backend and experts (`MoeLayer`); `verify` executes a plan on processes and checks them.
"""

try:
    import torch  # noqa: F401  # asked for here, so that one sentence says what is missing
except ImportError as error:
    from eplb.errors import MissingExtraError

    raise MissingExtraError("the runtime", "runtime") from error

from eplb.runtime.allgather import AllGather
from eplb.runtime.alltoall import AllToAll
from eplb.runtime.backend_choice import auto_backend, exchange_bytes, make_backend
from eplb.runtime.exchange import (
    Backend,
    ExchangeEpochError,
    ExchangeHandle,
    ExchangeLimits,
    ExchangeOverflowError,
    Overflow,
    RoutingPlan,
    read_buffer_scale_factors,
)
from eplb.runtime.expert_bank import BankShape, ExpertBank
from eplb.runtime.gate import (
    Gate,
    GateChoice,
    GroupLimit,
    HashGate,
    SigmoidGroupGate,
    SoftmaxGate,
    hash_table,
    rank_limited_top_k,
)
from eplb.runtime.launch import Launch, Member, run_processes
from eplb.runtime.migrate import LiveMigration, MigrationError, migrate
from eplb.runtime.moe_layer import MoeLayer, MoeResult, SlotExperts, route
from eplb.runtime.rank_group import RankGroup
from eplb.runtime.reference import Reference
from eplb.runtime.replica_choice import TokenSource, choose_slots, online_quotas
from eplb.runtime.tables import PlacementTables
from eplb.runtime.verify import VerifyReport, VerifyRequest, read_layers, verify
from eplb.runtime.verify_faults import CAUGHT_BY, Fault

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
