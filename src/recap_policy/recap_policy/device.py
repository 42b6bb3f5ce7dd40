"""Where and how a policy computes: device, number type, compilation, CUDA graphs. Imports no torch by itself.

What "auto" means: a GPU where there is one, with bfloat16 and CUDA graphs; else the CPU in float32, which
`python benchmarks/runtime.py` found faster there than bfloat16. Compilation is off unless asked for: it takes
minutes before a policy is ready.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from recap_station.contract import ContractError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from recap_policy.value import ValueModel
    from recap_policy.vla import VLA

CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16"),
    # torch.compile's modes that bring no CUDA graphs of their own: those are ours, see cuda_graphs.py
    "compile": ("off", "default", "max-autotune-no-cudagraphs"),
    "cuda_graphs": ("auto", "on", "off"),
}


@dataclass(frozen=True)
class RuntimeConfig:
    """What is asked for; each setting is one of its `CHOICES`. Raises ContractError on anything else."""

    device: str = "auto"
    dtype: str = "auto"
    compile: str = "off"
    cuda_graphs: str = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), CHOICES[field.name]
            if value not in known:
                raise ContractError(f"{field.name} is {value!r}, wanted one of {', '.join(known)}")
        if self.device == "cpu" and self.cuda_graphs == "on":
            raise ContractError("cuda_graphs is 'on' and device 'cpu', wanted a device 'cuda' with it")


@dataclass(frozen=True)
class Placement:
    """What is done: `RuntimeConfig` on this machine."""

    device: torch.device
    dtype: torch.dtype
    compile: str
    cuda_graphs: bool

    def __str__(self) -> str:
        words = [str(self.device), str(self.dtype).removeprefix("torch.")]
        words += [f"compile {self.compile}"] if self.compile != "off" else []
        words += ["CUDA graphs"] if self.cuda_graphs else []
        return ", ".join(words)


def resolve(config: RuntimeConfig) -> Placement:
    """Settle every "auto". Raises ContractError where this machine or this torch cannot do what is asked."""
    import torch

    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        built = torch.version.cuda
        why = f"torch for CUDA {built} finds no GPU" if built else "this torch is built without CUDA"
        raise ContractError(f"device is 'cuda', but {why}: wanted 'cpu' or 'auto' here")
    on_gpu = has_gpu and config.device != "cpu"
    if config.cuda_graphs == "on" and not on_gpu:
        raise ContractError("cuda_graphs is 'on', but there is no GPU: wanted 'auto' or 'off' here")
    if on_gpu and config.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise ContractError(f"dtype is 'bfloat16', which {torch.cuda.get_device_name()} lacks")
    name = config.dtype
    if name == "auto":
        name = "bfloat16" if on_gpu and torch.cuda.is_bf16_supported() else "float32"
    return Placement(
        torch.device("cuda" if on_gpu else "cpu"),
        torch.bfloat16 if name == "bfloat16" else torch.float32,
        config.compile,
        on_gpu and config.cuda_graphs != "off",
    )


def place(model: nn.Module, placement: Placement) -> None:
    """Move a model, in place. Statistics (buffers) stay in float32: a joint's radians want its digits."""
    model.to(placement.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(placement.dtype)


def prepare(model: VLA, value: ValueModel | None, placement: Placement) -> None:
    """Move policy and value function and make them fast as `placement` says."""
    import torch

    for module in (model, value):
        if module is not None:
            place(module, placement)
    if placement.compile != "off":
        for part, dynamic in ((model.vision, None), (model.backbone, True), (model.expert, True)):
            # Texts differ in length: not to be compiled anew for each.
            compiled = torch.compile(part.forward, mode=placement.compile, dynamic=dynamic)
            setattr(part, "forward", compiled)  # noqa: B010
    if placement.cuda_graphs:
        from recap_policy.cuda_graphs import StaticExpert, record_cuda_graph

        static = StaticExpert(model.expert.forward, record_cuda_graph)
        setattr(model.expert, "forward", static)  # noqa: B010
