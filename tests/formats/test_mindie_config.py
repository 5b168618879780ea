"""MindIE's config.json: the documented examples, what absent keys mean, and where a broken file is broken."""

import json

import pytest

from eplb.errors import FormatError, InputError
from eplb.formats.mindie_config import EpLevel, read_mindie_config
from eplb.formats.mindie_layout import ParallelLayout

FACTORS = [[1048576, 1.32], [524288, 1.4], [262144, 1.53], [131072, 1.8], [32768, 3.0], [8192, 5.2], [0, 8.0]]
MODEL = "$.BackendConfig.ModelDeployConfig.ModelConfig[0]"


@pytest.fixture
def write(tmp_path):
    def write_config(backend=None, **model):
        deploy = {"maxSeqLen": 2560, "ModelConfig": [{"modelName": "deepseek", "npuMemSize": -1, **model}]}
        path = tmp_path / "config.json"
        fields = {"Version": "1.0.0", "BackendConfig": {**(backend or {}), "ModelDeployConfig": deploy}}
        path.write_text(json.dumps(fields))
        return path

    return write_config


def test_context_and_sequence_parallel_example(write):
    config = read_mindie_config(write(worldSize=16, dp=1, cp=2, sp=8, tp=8, moe_ep=16, moe_tp=1))

    assert config.layout == ParallelLayout(world_size=16, tp=8, cp=2, sp=8, moe_ep=16)
    assert config.num_servers == 1
    assert config.ep_level is EpLevel.ALLGATHER
    assert config.buffer_scale_factors == ()
    assert config.topk_scaling_factor == 1.0
    assert (config.num_redundant_experts, config.expert_map_file) == (0, "")


def test_alltoall_example_with_its_buffer_factors(write):
    options = {"ep_level": 2, "alltoall_ep_buffer_scale_factors": FACTORS}
    config = read_mindie_config(write(worldSize=8, moe_ep=8, models={"deepseekv2": options}))

    assert config.ep_level is EpLevel.ALLTOALL
    assert config.buffer_scale_factors == tuple((length, factor) for length, factor in FACTORS)
    assert config.layout == ParallelLayout(world_size=8, tp=8, moe_ep=8)


def test_absent_sizes_are_one_tensor_cut_over_the_world(write):
    config = read_mindie_config(write(worldSize=8, dp=-1, moe_tp=-1))
    assert config.layout == ParallelLayout(world_size=8, tp=8, moe_tp=8)


def test_four_servers_of_eight_give_four_nodes(write):
    sizes = {"dp": 8, "tp": 4, "moe_tp": 1, "moe_ep": 32}
    config = read_mindie_config(write({"multiNodesInferEnabled": True}, worldSize=8, **sizes))

    assert config.layout == ParallelLayout(world_size=32, tp=4, dp=8, moe_ep=32)
    topology = config.topology(256, 32)
    assert (topology.num_nodes, topology.ranks_per_node, topology.slots_per_rank) == (4, 8, 9)


def test_expert_cuts_shrink_the_ranks_of_a_placement(write):
    sizes = {"dp": 2, "tp": 8, "moe_ep": 4, "moe_tp": 4}
    config = read_mindie_config(write({"multiNodesInferEnabled": "true"}, worldSize=8, **sizes))

    topology = config.topology(8, 0)
    assert (config.num_servers, topology.num_nodes, topology.num_ranks, topology.slots_per_rank) == (2, 2, 4, 2)


def test_the_kept_share_counts_only_where_the_cutoff_is_on(write):
    def share(**options):
        return read_mindie_config(write(worldSize=8, models={"deepseekv2": options})).topk_scaling_factor

    assert share(topk_scaling_factor=0.25, enable_init_routing_cutoff=True) == 0.25
    assert share(topk_scaling_factor=0.25) == 1.0


def test_the_static_balancer_names_its_map(write):
    eplb = {"level": 1, "expert_map_file": "map.json", "num_redundant_experts": 32}
    config = read_mindie_config(
        write(worldSize=8, models={"deepseekv2": {"eplb": eplb, "enable_mlapo_prefetch": True}})
    )
    assert (config.num_redundant_experts, config.expert_map_file) == (32, "map.json")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, f"{MODEL}: key 'worldSize' is missing"),
        ({"worldSize": "8"}, f"{MODEL}.worldSize = '8': expected an integer >= 1"),
        ({"worldSize": 8, "tp": 0}, f"{MODEL}.tp = 0: expected an integer >= 1"),
        ({"worldSize": 8, "dp": True}, f"{MODEL}.dp = True: expected an integer >= 1"),
        ({"worldSize": 16, "tp": 8}, f"{MODEL}: tp 8 x dp 1 x cp 1 = 8 ranks: expected world_size = 16"),
        ({"worldSize": 8, "moe_ep": 3}, f"{MODEL}: moe_tp 2 x moe_ep 3 = 6 ranks: expected world_size = 8"),
        ({"worldSize": 8, "sp": 4}, f"{MODEL}: sp = 4: expected 1 or tp = 8"),
        ({"worldSize": 8, "tp": 4, "cp": 2}, f"{MODEL}: cp = 2 with dp = 1, sp = 1: expected dp = 1 and sp = tp = 4"),
        ({"worldSize": 8, "models": []}, f"{MODEL}.models is a list: expected an object"),
        ({"worldSize": 8, "models": {"a": {}, "b": {}}}, f"{MODEL}.models names a, b: expected the options of one"),
        ({"worldSize": 8, "models": {"a": {"ep_level": 3}}}, f"{MODEL}.models.a.ep_level = 3: expected 1"),
        ({"worldSize": 8, "models": {"a": {"topk_scaling_factor": 2}}}, "topk_scaling_factor = 2.0: expected 0 <"),
        ({"worldSize": 8, "models": {"a": {"enable_init_routing_cutoff": 1}}}, "cutoff = 1: expected true or false"),
        ({"worldSize": 8, "models": {"a": {"eplb": {"num_redundant_experts": -1}}}}, ".models.a.eplb.num_redundant"),
    ],
)
def test_broken_models_are_named_by_their_path(write, model, message):
    with pytest.raises(FormatError) as caught:
        read_mindie_config(write(**model))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([[8192]], "[0] has 1 entries: expected [length, factor]"),
        ([[8192, 0]], "[0][1] = 0: expected a factor > 0"),
        ([[0, 8.0], [8192, 5.2]], "[1][0] = 8192: expected lengths to fall, after 0"),
        ([[0, "8"]], "[0][1] = '8': expected a finite number"),
    ],
)
def test_broken_buffer_factors_are_named_by_their_path(write, factors, message):
    options = {"ep_level": 2, "alltoall_ep_buffer_scale_factors": factors}
    with pytest.raises(FormatError) as caught:
        read_mindie_config(write(worldSize=8, models={"deepseekv2": options}))
    assert f"{MODEL}.models.deepseekv2.alltoall_ep_buffer_scale_factors{message}" in str(caught.value)


def test_servers_that_the_sizes_do_not_fill_are_refused(write):
    with pytest.raises(FormatError, match="tp x dp x cp = 12 ranks: expected a multiple of worldSize = 8"):
        read_mindie_config(write({"multiNodesInferEnabled": True}, worldSize=8, tp=4, dp=3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "$ is a list: expected an object"),
        ("{}", "$: key 'BackendConfig' is missing"),
        ('{"BackendConfig": {"ModelDeployConfig": {"ModelConfig": []}}}', "ModelConfig has 0 entries: expected one"),
        ('{"BackendConfig": {', "not JSON"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(FormatError) as caught:
        read_mindie_config(path)
    assert message in str(caught.value)


def test_a_placement_for_other_ranks_is_refused_and_the_level_names_the_exchange(write):
    config = read_mindie_config(write(worldSize=8, moe_ep=8, models={"deepseekv2": {"ep_level": 2}}))

    config.check_ranks(8)
    assert config.exchange == "alltoall"
    with pytest.raises(InputError, match="4 ranks: the MindIE config has moe_ep = 8"):
        config.check_ranks(4)
