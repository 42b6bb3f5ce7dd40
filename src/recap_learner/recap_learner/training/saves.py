"""The state of an unfinished training on disk: what a killed run goes on from.

One process writes `state.pt`. Several write `state-<step>/`, each rank its share of what is sharded
(torch.distributed.checkpoint), on a file system that all of them see. Either is read by any number of
processes with any strategy; the newest counts. A folder counts from the moment its `rest.pt` is there.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recap_learner.training.distributed import Crew
from recap_learner.training.optimizer import Optimizer
from recap_station.files import replace_file

REST = "rest.pt"


def tensors(model: nn.Module, optimizer: Optimizer, average: Sequence[Tensor]) -> dict[str, Tensor]:
    """Everything that training changes, by name, sharded or not: weights, what the optimiser remembers,
    averages and the model's buffers. Filling them fills the training."""
    found: dict[str, Tensor] = {}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in trained:
        found[f"weight.{name}"] = parameter.detach()
        found |= {f"{kind}.{name}": tensor for kind, tensor in optimizer.state(parameter).items()}
    for (name, _), mean in zip(trained, average, strict=False):
        found[f"average.{name}"] = mean
    kept = model.state_dict().keys()
    found |= {f"buffer.{name}": buffer for name, buffer in model.named_buffers() if name in kept}
    return found


class Saves:
    """Of one training, in its folder. `rest`: what is not a tensor, and what a `Stop` remembers: the same on
    all ranks."""

    def __init__(self, folder: Path, crew: Crew) -> None:
        self.folder, self.crew = folder, crew
        self.alone = folder / "state.pt"

    def write(self, step: int, now: Mapping[str, Tensor], rest: dict[str, Any]) -> None:
        """Replace the last save by this one, of `step` steps done. Killed meanwhile, the last one stays."""
        rest = {**rest, "step": step}
        if self.crew.ranks == 1:
            replace_file(self.alone, partial(torch.save, {"tensors": dict(now), "rest": rest}))
            return self._clear(self.alone)
        target = self.folder / f"state-{step:09d}"
        if self.crew.first:
            shutil.rmtree(target, ignore_errors=True)  # of a save that was killed
            target.mkdir(parents=True)
        self.crew.wait()
        _dcp().save(dict(now), checkpoint_id=target)
        if self.crew.first:
            replace_file(target / REST, partial(torch.save, rest))
            self._clear(target)

    def read(self, into: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Fill the tensors from the newest save → the rest of it; None where there is no save.

        Raises ValueError on a save of another model or of an earlier version.
        """
        newest = self.crew.tell(str(max(self._found(), key=_step, default="")))
        if not newest:
            return None
        path = Path(newest)
        if path == self.alone:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            saved, rest = state.get("tensors", {}), state.get("rest", {})
            self._compare(path, into, {name: saved[name].shape for name in saved})
            with torch.no_grad():
                for name, tensor in into.items():
                    _fill(tensor, saved[name])
            return rest
        saved = _dcp().FileSystemReader(path).read_metadata().state_dict_metadata
        self._compare(path, into, {name: getattr(about, "size", ()) for name, about in saved.items()})
        with warnings.catch_warnings():
            # One process reads what several wrote: that is meant.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            _dcp().load(dict(into), checkpoint_id=path, no_dist=self.crew.ranks == 1)
        return torch.load(path / REST, map_location="cpu", weights_only=True)

    def clear(self) -> None:
        """The training is done: no save is wanted any more."""
        self.crew.wait()
        if self.crew.first:
            self._clear(None)

    def _found(self) -> list[Path]:
        folders = [path.parent for path in self.folder.glob(f"state-*/{REST}")]
        return [*folders, *([self.alone] if self.alone.exists() else [])]

    def _clear(self, kept: Path | None) -> None:
        if kept != self.alone:
            self.alone.unlink(missing_ok=True)
        for path in self.folder.glob("state-*"):
            if path != kept:
                (path / REST).unlink(missing_ok=True)  # first: half a folder must not count
                shutil.rmtree(path, ignore_errors=True)

    def _compare(self, path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
        for name in sorted(wanted.keys() | found.keys()):
            have = tuple(found[name]) if name in found else None
            want = tuple(wanted[name].shape) if name in wanted else None
            if have != want:
                raise ValueError(
                    f"{path}: {name} is {have or 'missing'}, wanted {want or 'none'}: a training of another "
                    "model or version; delete it to begin anew"
                )


def _dcp() -> Any:
    """Imported where several processes save or saved: it takes two seconds, as much as torch itself."""
    import torch.distributed.checkpoint

    return torch.distributed.checkpoint


def _step(path: Path) -> int:
    if path.name.startswith("state-"):
        return int(path.name.removeprefix("state-"))
    rest = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("rest", {})
    return int(rest.get("step", 0))


def _fill(tensor: Tensor, saved: Tensor) -> None:
    """tensor: whole or sharded; saved: whole."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is not None:
        from torch.distributed.tensor import distribute_tensor

        saved = distribute_tensor(saved.to(tensor.device), mesh, tensor.placements)  # type: ignore[attr-defined]
    tensor.copy_(saved)
