"""Entry points that engines call in each of their processes; each does nothing unless EPLB_REGISTER names it.

vLLM and vllm-ascend call those of the group `vllm.general_plugins`, SGLang those of `sglang.srt.plugins`.
"""

from eplb.engines import ascend, sglang, vllm
from eplb.engines.registration import asked_engines


def vllm_plugin() -> None:
    """Register the drop-ins for vLLM and vllm-ascend that this process was asked for."""
    asked = asked_engines()
    if "vllm" in asked:
        vllm.register()
    if "ascend" in asked:
        ascend.register()


def sglang_plugin() -> None:
    """Register the drop-in for SGLang if this process was asked for it."""
    if "sglang" in asked_engines():
        sglang.register()
