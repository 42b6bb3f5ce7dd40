"""How large the named configurations are: parameters per part, counted without memory for any.

python -m recap_policy.parameters
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from recap_policy.sizes import VALUE_CONFIGS, VLA_CONFIGS
from recap_policy.value import ValueModel
from recap_policy.vla import VLA

PARTS = ("vision", "table", "decoder", "expert", "rest")  # rest: image, state and value projections


@cache
def count(name: str) -> dict[str, int]:
    """Parameters of each of PARTS, and "all", of a named policy or value configuration."""
    with torch.device("meta"):
        model = VLA(VLA_CONFIGS[name]) if name in VLA_CONFIGS else ValueModel(VALUE_CONFIGS[name])
    found = {
        "vision": _size(model.vision),
        "table": _size(model.prefix.table),
        "decoder": _size(model.backbone),
        "expert": _size(model.expert) if isinstance(model, VLA) else 0,
    }
    total = _size(model)
    return {**found, "rest": total - sum(found.values()), "all": total}


def table() -> str:
    """All named configurations, in millions."""
    columns = (*PARTS, "all")
    lines = [" ".join([f"{'millions':12}", *(f"{column:>9}" for column in columns)])]
    for name in (*VLA_CONFIGS, *VALUE_CONFIGS):
        counted = count(name)
        lines.append(" ".join([f"{name:12}", *(f"{counted[column] / 1e6:9.2f}" for column in columns)]))
    return "\n".join(lines)


def _size(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


if __name__ == "__main__":
    print(table())
