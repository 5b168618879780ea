"""SGLang's configuration and model for the tests inside it, made with its own `override_server_args`."""

import sys
import types

from tests.real_engines.our_plans import NUM_EXPERTS, SHAPE


def serve(num_ranks, *, redundant, **fields):
    """A context in which SGLang has the configuration of a server on the CPU; any of its fields may be given."""
    from sglang.srt.runtime_context import get_context

    usual = {"moe_a2a_backend": "deepep", "ep_dispatch_algorithm": "static", "eplb_algorithm": "deepseek"}
    fixed = {"device": "cpu", "tp_size": num_ranks, "ep_size": num_ranks, "ep_num_redundant_experts": redundant}
    return get_context().override_server_args(**fixed, **{**usual, **fields})


def put_model_in(*, num_layers=SHAPE.num_hidden_layers, num_experts=NUM_EXPERTS, num_groups=None):
    """A model's configuration; SGLang's look-up of model classes, which imports them all, gives one that has it."""
    from sglang.srt.eplb.expert_location import ModelConfigForExpertLocation

    shape = ModelConfigForExpertLocation(num_layers, num_experts, num_groups)
    model_class = types.SimpleNamespace(get_model_config_for_expert_location=lambda _: shape)
    loader = types.ModuleType("sglang.srt.model_loader")
    loader.get_model_architecture = lambda _: (model_class, "Model")
    sys.modules[loader.__name__] = loader
    return types.SimpleNamespace(hf_config=None)


def forget_live_map():
    """Let SGLang be as before its start: it keeps the live map for the whole process."""
    from sglang.srt.eplb.expert_location import set_global_expert_location_metadata

    set_global_expert_location_metadata(None, allow_overwrite=True)


def read_location(path, *, rank=0, **server):
    """`ExpertLocationMetadata` as SGLang makes it at start from a file."""
    from sglang.srt.eplb.expert_location import compute_initial_expert_location_metadata

    model = server.pop("model", None) or put_model_in()
    with serve(init_expert_location=str(path), **server):
        return compute_initial_expert_location_metadata(model, rank)
