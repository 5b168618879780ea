"""Entry points that engines call in each process; they register the replacements named in EPLB_REGISTER.

vLLM and vllm-ascend call the group `vllm.general_plugins`, SGLang the group `sglang.srt.plugins`.
"""

from eplb.engines import ascend, sglang, vllm
from eplb.engines.registration import engines_to_register


def vllm_plugin() -> None:
    """Register the policies for vLLM and vllm-ascend if EPLB_REGISTER names them."""
    names = engines_to_register()
    if "vllm" in names:
        vllm.register()
    if "ascend" in names:
        ascend.register()


def sglang_plugin() -> None:
    """Register the algorithm for SGLang if EPLB_REGISTER names it."""
    if "sglang" in engines_to_register():
        sglang.register()
