"""vLLM's own tests of its policy, run on our class; vLLM 0.32.0.

Exercised: `tests/distributed/test_eplb_algo.py` of vLLM's source package as it is, with our `VllmPolicy` in the place
of `DefaultEplbPolicy`, and vLLM's `compute_logical_maps`, which those tests call. Once with the setting "deepseek", the
algorithm of vLLM, and once as it comes. Stubbed: see `engine_import`; nothing that these tests reach.
"""

import importlib.util
import inspect

import pytest

from tests.real_engines.engine_import import ENGINES, prepare

prepare("vllm")

from vllm.distributed.eplb.policy import default  # noqa: E402

from eplb.engines.policy import PolicySettings  # noqa: E402
from eplb.engines.vllm import VllmPolicy  # noqa: E402

TEST_FILE = ENGINES / "vllm" / "own_tests" / "test_eplb_algo.py"
THEIRS = default.DefaultEplbPolicy


def own_tests(policy, label):
    """The tests of the file that use the policy, over `policy`, by new names."""
    spec = importlib.util.spec_from_file_location(f"vllm_{TEST_FILE.stem}_{label}", TEST_FILE)
    module = importlib.util.module_from_spec(spec)
    default.DefaultEplbPolicy = policy
    try:
        spec.loader.exec_module(module)
    finally:
        default.DefaultEplbPolicy = THEIRS
    tests = {name: value for name, value in vars(module).items() if name.startswith("test_")}
    return {
        name.replace("test_", f"test_{label}_", 1): test
        for name, test in tests.items()
        if "DefaultEplbPolicy" in test.__code__.co_names
    }


published = own_tests(VllmPolicy(settings=PolicySettings(strategy="deepseek")), "published")
ours = own_tests(VllmPolicy(settings=PolicySettings()), "ours")
GOLDEN = "test_ours_basic_rebalance"
ours[GOLDEN] = pytest.mark.xfail(raises=AssertionError, strict=True, reason="the map of another algorithm")(
    ours[GOLDEN]
)
globals().update({**published, **ours})


def test_both_runs_have_all_tests_of_the_policy():
    # Counted in the file of vLLM 0.32.0: 13 functions, of which load stats and -1 in maps do not use the policy.
    assert len(published) == len(ours) == 11


def test_the_call_is_vllms():
    expected = inspect.signature(THEIRS.rebalance_experts).parameters
    found = inspect.signature(VllmPolicy().rebalance_experts).parameters
    assert list(found) == list(expected)
    assert [p.default for p in found.values()] == [p.default for p in expected.values()]
