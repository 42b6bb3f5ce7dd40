"""`values.npz`: V of every tick of every episode, and what it takes to read it under another C_fail.

<episode>           (T,) float32 normalised value
<episode>/failed    (T, 2) float32, see `returns.renormalize`; absent where the rule tells no failures
/normalizers        task → normaliser, as JSON
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from recap_learner.value.returns import Normalizer
from recap_station.files import replace_file

_NORMS, _FAILED = "/normalizers", "/failed"


def save_values(
    path: Path,
    values: Mapping[str, np.ndarray],
    failed: Mapping[str, np.ndarray] | None,
    norms: Mapping[str, Normalizer],
) -> None:
    """Write them in one step."""
    arrays = dict(values) | {f"{name}{_FAILED}": column for name, column in (failed or {}).items()}
    arrays[_NORMS] = np.array(json.dumps({task: norm.to_dict() for task, norm in norms.items()}))

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    replace_file(path, save)


def load_values(
    path: Path,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Normalizer]]:
    """(values, failed, normalisers by task); the last two are empty in files of before they were kept.

    Raises FileNotFoundError with what to do.
    """
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: wanted the values of all ticks, found none") from None
    told = arrays.pop(_NORMS, None)
    norms = {} if told is None else {t: Normalizer(**norm) for t, norm in json.loads(str(told)).items()}
    failed = {name.removesuffix(_FAILED): arrays.pop(name) for name in list(arrays) if name.endswith(_FAILED)}
    return arrays, failed, norms
