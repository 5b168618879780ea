"""Makes an engine's EPLB modules importable without a GPU: which parts of it are not there is a table below.

Only for processes of their own, see `test_inside_the_engines`: it changes `sys.path`, `sys.modules` and the import
system for good.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, final

ENGINES = Path(__file__).resolve().parents[2] / ".engines"


@final
@dataclass(frozen=True)
class Engine:
    """What to put on the path, and what to leave out.

    `folders` in .engines; `hollow` packages are importable but their `__init__`, which imports all of the engine, is
    not run; `absent` modules, and everything below them, are stand-ins whose every attribute is an empty class.
    """

    folders: tuple[str, ...]
    hollow: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


_VLLM_HOLLOW = ("vllm.model_executor.layers.fused_moe",)
_VLLM_ABSENT = (
    "vllm._aiter_ops",  # ROCm kernels
    "vllm.model_executor.layers.fused_moe.experts.rocm_aiter_moe",  # ROCm kernels
    "vllm.reasoning",  # parsers of answers, which need the HTTP server
    "vllm.v1.executor",  # the engine's loop
)
TABLE = {
    "vllm": Engine(("vllm", "light"), _VLLM_HOLLOW, _VLLM_ABSENT),
    "sglang": Engine(
        ("sglang", "light"),
        ("sglang",),
        (
            "IPython",  # only shows things in notebooks
            "triton",
            "sglang.kernels.ops",  # CUDA and Triton kernels
            "sglang.srt.layers.moe",  # the same
            "sglang.srt.configs",  # configurations of all models, which need torchvision
            "sglang.srt.observability.metrics_collector",  # Prometheus
        ),
    ),
    "ascend": Engine(
        ("vllm_ascend", "vllm", "light"),
        ("vllm_ascend", "vllm_ascend.distributed", *_VLLM_HOLLOW),
        (
            *_VLLM_ABSENT,
            "torch_npu",
            "vllm_ascend.ascend_config",  # needs the NPU's driver
            "vllm_ascend.quantization",  # NPU kernels
            "vllm_ascend.distributed.parallel_state",  # groups of NPUs
        ),
    ),
    "dlblas": Engine(("dlblas",), ("dlblas", "dlblas.layers", "dlblas.layers.moe")),
}


def missing_folders(name: str) -> list[str]:
    """The folders of .engines that an engine needs and that are not there."""
    return [folder for folder in TABLE[name].folders if not (ENGINES / folder / "complete.txt").is_file()]


def prepare(name: str) -> None:
    """Make the engine's modules importable in this process; a second call changes nothing."""
    engine = TABLE[name]
    if any(isinstance(finder, _Absent) for finder in sys.meta_path):
        return
    folders = [ENGINES / folder for folder in engine.folders]
    sys.path[:0] = map(str, folders)
    sys.meta_path.insert(0, _Absent(engine.absent))
    for package in engine.hollow:
        module = ModuleType(package)
        places = (folder.joinpath(*package.split(".")) for folder in folders)
        module.__path__ = [str(place) for place in places if place.is_dir()]
        sys.modules[package] = module


class _EmptyClass(type):
    """Attributes of the class are the class; calling it with a function, as a decorator, gives the function back."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *args: Any, **_: Any) -> Any:
        return args[0] if args and callable(args[0]) else cls


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _EmptyClass(name, (), {})
        setattr(self, name, value)
        return value


class _Absent(MetaPathFinder, Loader):
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        absent = any(fullname == name or fullname.startswith(f"{name}.") for name in self.names)
        return ModuleSpec(fullname, self, is_package=True) if absent else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""
