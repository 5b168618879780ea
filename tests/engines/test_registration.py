"""Registration in an engine replaces one attribute; a missing engine or attribute is named."""

import subprocess
import sys
from types import ModuleType

import pytest

from eplb.engines import ascend, plugins, sglang, vllm
from eplb.engines.policy import PolicySettings
from eplb.engines.registration import EngineError, engines_to_register
from eplb.errors import UnknownNameError


def fake_module(monkeypatch, name, **attributes):
    """Add a module and its parents to `sys.modules`."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            module = ModuleType(path)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, path, module)
    vars(sys.modules[name]).update(attributes)
    return sys.modules[name]


@pytest.fixture
def vllm_table(monkeypatch):
    table = {"default": object}
    fake_module(monkeypatch, "vllm.distributed.eplb.policy", EPLB_POLICIES=table)
    return table


@pytest.fixture
def sglang_modules(monkeypatch):
    algorithms = fake_module(
        monkeypatch, "sglang.srt.eplb.eplb_algorithms", rebalance_experts=len, compute_algorithm=len
    )
    location = fake_module(
        monkeypatch, "sglang.srt.eplb.expert_location", get_global_expert_location_metadata=lambda: None
    )
    return algorithms, location


@pytest.fixture
def ascend_factory(monkeypatch):
    return fake_module(
        monkeypatch,
        "vllm_ascend.eplb.core.policy.policy_factory",
        SwiftBalanceEplb=dict,
        FlashLB=list,
        DefaultEplb=set,
        RandomLoadBalance=tuple,
    )


def test_vllms_default_policy_is_replaced(vllm_table):
    mine = vllm.VllmPolicy(settings=PolicySettings(target=1.2, trigger=1.2), plan=None)
    assert vllm.register(mine) is mine
    assert vllm_table == {"default": mine}


def test_the_environment_configures_the_policy(vllm_table, ascend_factory, sglang_modules, monkeypatch):
    monkeypatch.setenv("EPLB_POLICY_TARGET", "1.3")
    assert vllm.register().settings.target == 1.3
    assert ascend.register().settings.target == 1.3
    assert sglang.register().settings.target == 1.3


@pytest.mark.parametrize(("policy_type", "name"), [(1, "DefaultEplb"), (2, "SwiftBalanceEplb"), (3, "FlashLB")])
def test_vllm_ascends_class_of_a_type_is_replaced(ascend_factory, policy_type, name):
    before = dict(vars(ascend_factory))
    mine = ascend.AscendPolicy(settings=PolicySettings())
    ascend.register(mine, policy_type=policy_type)
    made = vars(ascend_factory)[name]
    assert made() is mine
    assert made.__name__ == "eplb_policy"  # the engine logs it
    assert {key for key in before if before[key] is not vars(ascend_factory)[key]} == {name}


def test_an_unknown_type_of_vllm_ascend_is_refused(ascend_factory):
    with pytest.raises(AssertionError, match="policy_type = 4: expected one of 0, 1, 2, 3"):
        ascend.register(policy_type=4)


def test_sglangs_algorithm_is_replaced_and_reads_the_live_map_and_active_ranks(sglang_modules, monkeypatch):
    torch = pytest.importorskip("torch")
    algorithms, location = sglang_modules
    ours = sglang.register(PolicySettings())
    tokens = torch.arange(1, 17).reshape(1, 16)
    first, _, _ = algorithms.rebalance_experts(tokens, 20, 5, None, 1, "auto")

    class Metadata:
        physical_to_logical_map_cpu = first.flip(1)

    location.get_global_expert_location_metadata = Metadata
    assert torch.equal(algorithms.rebalance_experts(tokens, 20, 5, None, 1, "auto")[0], first.flip(1))

    class State:
        active_ranks = torch.tensor([1, 1, 1, 0])

    class Manager:
        @staticmethod
        def instance():
            return State

    location.get_global_expert_location_metadata = lambda: None
    fake_module(monkeypatch, "sglang.srt.elastic_ep.elastic_ep", ElasticEPStateManager=Manager)
    few = torch.arange(1, 13).reshape(1, 12)
    phy2log, _, _ = algorithms.rebalance_experts(few, 20, 5, None, 1, "elasticity_aware")
    assert phy2log[0, 15:].tolist() == [0] * 5
    assert set(phy2log[0, :15].tolist()) == set(range(12))
    Manager.instance = staticmethod(lambda: None)
    assert ours.active_ranks() is None


@pytest.mark.parametrize(
    ("register", "module", "engine"),
    [
        (vllm.register, "vllm.distributed.eplb.policy", "vllm"),
        (sglang.register, "sglang.srt.eplb.eplb_algorithms", "sglang"),
        (ascend.register, "vllm_ascend.eplb.core.policy.policy_factory", "vllm-ascend"),
    ],
)
def test_a_missing_engine_is_named(monkeypatch, register, module, engine):
    monkeypatch.setitem(sys.modules, module.split(".")[0], None)  # how Python says that there is none
    with pytest.raises(EngineError, match=f"{engine}: cannot import {module} .*expected {engine} in this environment"):
        register()
    with pytest.raises(ImportError):
        register()


def test_a_vllm_without_the_table_or_its_default_is_refused(vllm_table):
    vllm_table.clear()
    with pytest.raises(EngineError, match=r'expected vllm.distributed.eplb.policy.EPLB_POLICIES\["default"\]'):
        vllm.register()
    del sys.modules["vllm.distributed.eplb.policy"].EPLB_POLICIES
    with pytest.raises(EngineError, match="which this version of vllm does not have"):
        vllm.register()


def test_an_sglang_without_the_function_or_the_live_map_is_refused(sglang_modules):
    algorithms, location = sglang_modules
    del location.get_global_expert_location_metadata
    with pytest.raises(EngineError, match=r"expected .*expert_location.get_global_expert_location_metadata"):
        sglang.register()
    assert algorithms.rebalance_experts is len
    del algorithms.rebalance_experts
    with pytest.raises(EngineError, match=r"expected sglang.srt.eplb.eplb_algorithms.rebalance_experts"):
        sglang.register()


def test_a_vllm_ascend_without_the_class_is_refused(ascend_factory):
    del ascend_factory.SwiftBalanceEplb
    with pytest.raises(EngineError, match=r"expected .*policy_factory.SwiftBalanceEplb"):
        ascend.register()


def test_plugins_do_nothing_by_default(vllm_table, sglang_modules, ascend_factory, monkeypatch):
    monkeypatch.delenv("EPLB_REGISTER", raising=False)
    plugins.vllm_plugin()
    plugins.sglang_plugin()
    assert vllm_table == {"default": object}
    assert sglang_modules[0].rebalance_experts is len
    assert ascend_factory.SwiftBalanceEplb is dict


def test_plugins_register_the_engines_of_the_environment(vllm_table, sglang_modules, ascend_factory, monkeypatch):
    monkeypatch.setenv("EPLB_REGISTER", "vllm")
    plugins.vllm_plugin()
    plugins.sglang_plugin()
    assert isinstance(vllm_table["default"], vllm.VllmPolicy)
    assert sglang_modules[0].rebalance_experts is len
    assert ascend_factory.SwiftBalanceEplb is dict
    monkeypatch.setenv("EPLB_REGISTER", "ascend, sglang")
    plugins.vllm_plugin()
    plugins.sglang_plugin()
    assert sglang_modules[0].rebalance_experts is not len
    assert isinstance(ascend_factory.SwiftBalanceEplb(), ascend.AscendPolicy)


def test_registration_loads_the_kernels_of_the_planner():
    code = (
        "import sys, types; from eplb.engines import vllm; from eplb.engines.policy import PolicySettings\n"
        "for name in ('vllm', 'vllm.distributed', 'vllm.distributed.eplb', 'vllm.distributed.eplb.policy'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "sys.modules['vllm.distributed.eplb.policy'].EPLB_POLICIES = {'default': object}\n"
        "known = lambda: {name for name in sys.modules if name.startswith('eplb.') and name.endswith('_kernel')}\n"
        "assert not known()\n"
        "policy, loaded = vllm.register(), known()\n"
        "import torch; weight = torch.arange(1, 65).reshape(2, 32)\n"
        "live = policy.rebalance_experts(weight, 40, 4, 2, 8)\n"
        "policy.rebalance_experts(weight.flip(1), 40, 4, 2, 8, live)\n"
        "assert loaded and known() == loaded, known() - loaded\n"
    )
    pytest.importorskip("torch")
    script = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n{code}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_an_unknown_engine_is_refused():
    assert engines_to_register({}) == ()
    assert engines_to_register({"EPLB_REGISTER": " vllm ,,sglang"}) == ("vllm", "sglang")
    with pytest.raises(
        UnknownNameError, match="unknown engine in EPLB_REGISTER 'trtllm': expected one of ascend, sglang"
    ):
        engines_to_register({"EPLB_REGISTER": "trtllm"})
