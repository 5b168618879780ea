"""Predicts the seconds of a step's MoE layers under a placement, for a recorded load and a GPU.

Attention, dense layers, shared experts, routers and the head of the model are not part of it.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.counts import check_count, check_seed
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.cost.batch import Batch
from eplb.cost.calibration import Calibration, Provenance
from eplb.cost.model_presets import ModelSizes
from eplb.cost.step_time import LayerTimes, predict
from eplb.errors import InputError
from eplb.evaluation.traffic import TokenSources, fitting_sources
from eplb_traces import ExpertLoad, ModelShape, RoutingTrace
from eplb_traces.display import cut, fields_html

NOT_MODELLED = "attention, dense layers, shared experts, routers, head"
"""The parts of a step that no prediction includes."""


@final
@dataclass(frozen=True, eq=False)
class StepBatch:
    """The choices of one step, and where they come from."""

    choices: Batch
    layers: tuple[int, ...]
    """Layers with tokens."""
    origin: str
    """"sampled from the load, seed 0" or "first 4096 tokens of the trace"."""


@final
@dataclass(frozen=True, eq=False)
class PredictedStep:
    """Where the time of a step goes."""

    times: LayerTimes
    """Of the recorded layers with tokens."""
    num_moe_layers: int
    """MoE layers of the model; totals are the mean recorded layer times this."""

    def total(self, layer_s: Floats) -> float:
        """Seconds of all MoE layers, from the seconds of each recorded one."""
        return float(layer_s.mean()) * self.num_moe_layers

    @property
    def step_s(self) -> float:
        """Seconds of all MoE layers."""
        return self.total(self.times.step_s)

    def summary(self) -> dict[str, float]:
        """Milliseconds of all MoE layers by part; the parts sum to `predicted_step_ms`."""
        return {f"predicted_{name}_ms": self.total(layer_ms) for name, layer_ms in self.layer_ms().items()}

    def layer_ms(self) -> dict[str, Floats]:
        """Milliseconds of each recorded layer by part: FFN of the mean rank, mean wait for the slowest rank."""
        times = self.times
        return {
            "step": 1e3 * times.step_s,
            "dispatch": 1e3 * times.dispatch_s,
            "ffn": 1e3 * times.ffn_s.mean(axis=1),
            "waiting": 1e3 * times.waiting_s,
            "combine": 1e3 * times.combine_s,
        }


@final
@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What the time of a step depends on beside placement and load.

    Parameters
    ----------
    model
        Sizes of the model.
    calibration
        The GPU.
    tokens_per_rank
        Tokens of a rank in a step.
    weight_type
        Type of the experts' weights; None: the model's.
    seed
        Of batches that are sampled from a load.

    Raises
    ------
    InputError
        If the calibration does not hold the type, or a number is below one.
    """

    model: ModelSizes
    calibration: Calibration
    tokens_per_rank: int
    weight_type: str | None = None
    seed: int = 0

    def __repr__(self) -> str:
        what = f"{self.model.name}, {self.calibration.gpu}, {self.tokens_per_rank} tokens a rank, {self.dtype}"
        return cut(f"StepCost({what})")

    def _repr_html_(self) -> str:
        return fields_html(self)

    def __post_init__(self) -> None:
        self.calibration.ffn_of(self.dtype)
        check_count("tokens_per_rank", self.tokens_per_rank)
        check_seed(self.seed)

    @property
    def dtype(self) -> str:
        """Type of the weights that is timed."""
        return self.model.dtype if self.weight_type is None else self.weight_type

    @property
    def title(self) -> str:
        """Model, type, GPU with its provenance, and tokens, for the head of a table."""
        return f"{self.model.name} ({self.dtype}) on {self.calibration.title}, {self.tokens_per_rank} tokens a rank"

    @property
    def sampled(self) -> str:
        """Where choices come from that are sampled."""
        return f"sampled from the load, seed {self.seed}"

    def scaling(self, num_layers: int) -> str:
        """How seconds of `num_layers` recorded layers become those of the model; empty where it has as many."""
        if num_layers == self.model.num_moe_layers:
            return ""
        return f"; {self.model.num_moe_layers} times the mean recorded layer, of {num_layers}"

    def sampled_from(self, load: ExpertLoad) -> str:
        """Where choices come from that are sampled from a load, and how its layers become those of the model."""
        return f"{self.sampled}{self.scaling(int(load.total.any(axis=1).sum()))}"

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences that belong below every table of predicted milliseconds."""
        links, found = self.calibration.links, [f"not in the milliseconds: {NOT_MODELLED}"]
        if self.calibration.provenance is Provenance.FORMULA:
            found.append(f"FORMULA: nobody measured {self.calibration.gpu}; {self.calibration.machine}")
        sources = {"inside a node": links.intra_node.source, "between nodes": links.inter_node.source}
        assumed = [f"{place} {source}" for place, source in sources.items() if not source.startswith("measured")]
        if assumed:
            found.append(f"links: {'; '.join(assumed)}")
        return tuple(found)

    def summary(self) -> dict[str, object]:
        """What the milliseconds are of, by name."""
        links = self.calibration.links
        return {
            "model": self.model.name,
            "num_moe_layers": self.model.num_moe_layers,
            "weight_type": self.dtype,
            "gpu": self.calibration.gpu,
            "provenance": self.calibration.provenance.value,
            "links": {"intra_node": links.intra_node.source, "inter_node": links.inter_node.source},
            "tokens_per_rank": self.tokens_per_rank,
            "not_modelled": NOT_MODELLED,
        }

    def check_model(self, shape: ModelShape) -> None:
        """Refuse a load of another model.

        Raises
        ------
        InputError
            For another number of experts, or of experts a token.
        """
        model = self.model
        if shape.num_experts != model.num_experts:
            raise InputError(
                f"model {model.name} has {model.num_experts} experts: expected {shape.num_experts}, as the load"
            )
        if shape.top_k is not None and shape.top_k != model.top_k:
            raise InputError(f"model {model.name} has top_k = {model.top_k}: expected {shape.top_k}, as the load")

    @property
    def expert_bytes(self) -> float:
        """Bytes of one expert of one layer."""
        return self.model.expert_bytes(self.dtype)

    def batch(self, source: ExpertLoad | RoutingTrace, topology: Topology) -> StepBatch:
        """The choices of one step on the ranks of a topology.

        Those of a trace's first tokens, where it has enough of them; otherwise choices are sampled by the shares of the
        load, its windows summed. Every placement on the same number of ranks gets the same batch.

        Raises
        ------
        InputError
            For a load of another model or without tokens.
        """
        self.check_model(source.shape)
        num_ranks = topology.num_ranks
        needed = num_ranks * self.tokens_per_rank
        note = ""
        if isinstance(source, RoutingTrace):
            has_sources = any(batch.source_rank is not None for batch in source)
            if has_sources and fitting_sources(source, topology) is not TokenSources.TRACE:
                note = ", as the trace's source ranks are not those of the plan"
            elif source.num_tokens >= needed:
                choices = Batch.of_trace(source, num_ranks=num_ranks, tokens_per_rank=self.tokens_per_rank)
                return StepBatch(choices, self._layers(choices.load), f"first {needed} tokens of the trace")
            else:
                note = f", as the trace has {source.num_tokens} tokens and a step {needed}"
            source = source.load()
        total = source.total
        layers = self._layers(total)
        sampled = Batch.sampled(
            np.where(total.any(axis=1, keepdims=True), total, 1.0),  # a layer without tokens is left out below
            num_ranks=num_ranks,
            tokens_per_rank=self.tokens_per_rank,
            top_k=self.model.top_k,
            seed=self.seed,
        )
        return StepBatch(sampled, layers, f"{self.sampled}{note}")

    def predict(self, placement: Placement, batch: StepBatch, rule: DispatchRule) -> PredictedStep:
        """The step of a batch under a placement.

        Raises
        ------
        InputError
            If the placement does not fit the batch, or lacks the weights that the rule needs.
        """
        times = predict(
            placement,
            batch.choices,
            self.model,
            self.calibration,
            dtype=self.weight_type,
            rule=rule,
            layers=batch.layers,
        )
        return PredictedStep(times, self.model.num_moe_layers)

    def _layers(self, load: Floats | Ints) -> tuple[int, ...]:
        """Layers of [L, E] counts with tokens."""
        layers = tuple(np.flatnonzero(load.any(axis=1)).tolist())
        if not layers:
            raise InputError("load: every count is zero, nothing to predict")
        if len(layers) > self.model.num_moe_layers:
            raise InputError(
                f"model {self.model.name} has {self.model.num_moe_layers} MoE layers: expected at least {len(layers)}, "
                "the layers of the load with tokens"
            )
        return layers
