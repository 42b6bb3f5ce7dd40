"""Real backbones from disk: Hugging Face folders of Gemma 3 and SigLIP (safetensors, sharded or not), and
llama.cpp's GGUF files of Gemma 3's decoder.

Tensors are read piece by piece into memory that is allocated once, so the peak is the model and one piece.
Nothing is unpickled. Every tensor is accounted for before the first is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from recap_policy.attention import RMSNorm, linear
from recap_policy.backbone import Backbone, TokenTable, prefix_mask, token_positions, unfilled
from recap_policy.config import BackboneConfig, ObjectConfig, VisionConfig
from recap_policy.reference import Place, PretrainedError, Shape, canonical, places, shape_of
from recap_policy.value import ValueModel
from recap_policy.vision import VisionTower
from recap_policy.vla import VLA

_PIECE_BYTES = 32 * 2**20
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


class Pretrained(nn.Module):
    """What one folder held, ready to run: the modules that a policy is made of, None where not there."""

    def __init__(self, shape: Shape, *, blank: bool = False) -> None:
        super().__init__()
        self.shape = shape
        text, vision = shape.backbone, shape.vision
        with unfilled(blank):
            self.vision = VisionTower(vision) if vision else None
            self.backbone = Backbone(text) if text else None
            self.table = TokenTable(text.vocabulary or 0, text.width) if text else None
            self.image_norm = RMSNorm(vision.width) if text and vision else None
            self.image_projection = linear(vision.width, text.width) if text and vision else None

    def images(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 RGB → (N, tokens, width of the decoder)"""
        assert self.vision and self.image_norm and self.image_projection, "a folder without images"
        return self.image_projection(self.image_norm(self.vision(images)))

    def forward(self, ids: Tensor, valid: Tensor | None = None, images: Tensor | None = None) -> Tensor:
        """Final hidden states of text ids (B, L) int64, behind image tokens (B, n, width) where given.

        valid: (B, L) bool, False where padding. → (B, n + L, width); `table.logits` makes logits of them.
        """
        assert self.table and self.backbone, "a folder without a decoder"
        x = self.table(ids)
        seen = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
        count = 0
        if images is not None:
            count = images.shape[1]
            x, seen = torch.cat([images, x], 1), F.pad(seen, (count, 0), value=True)
        return self.backbone(x, token_positions(seen), prefix_mask(seen, count))[0]


def load_backbone(folder: str | Path, dtype: torch.dtype | None = None) -> Pretrained:
    """A Hugging Face folder of Gemma 3 (with or without its tower) or of SigLIP, on the CPU, in eval mode.

    dtype: of the weights; None: as stored. Raises PretrainedError, with the name of every tensor that is
    missing, unexpected or misshapen.
    """
    return _load(_Folder(Path(folder)), dtype)


def load_gguf(path: str | Path, dtype: torch.dtype = torch.float32) -> Pretrained:
    """The text decoder in a GGUF file of Gemma 3, dequantised. Raises PretrainedError, as `load_backbone`.

    Needs the package `gguf`.
    """
    from recap_policy.gguf_source import GGUFSource

    return _load(GGUFSource(Path(path)), dtype)


def fill(model: VLA | ValueModel, *folders: str | Path, dtype: torch.dtype | None = None) -> None:
    """Load what the folders hold into a policy or value function, preferably one made with `blank=True`.

    Position embeddings of the tower are interpolated where the model's images are of another size. With
    `dtype`, all of the model's parameters get that type; statistics of states and actions stay float32.
    Raises PretrainedError where a folder does not fit, or where a blank part of the model was in none.
    """
    parts = _parts(model)
    for folder in folders:
        source = _Folder(Path(folder))
        _compare(source, source.shape.backbone, model.backbone.config, {"dropout"})
        if source.shape.vision:
            wanted = model.vision.config if model.vision else None
            _compare(source, source.shape.vision, wanted, {"image_size", "pool"})
        _fill(parts, source, dtype)
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if left:
        raise PretrainedError(f"nothing to fill {len(left)} tensors with in {len(folders)} folders", left)
    if dtype is not None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)


class Source(Protocol):
    """Tensors by the reference's names, readable in pieces."""

    place: Path
    shape: Shape
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start .. stop of a tensor."""


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.place = folder
        try:
            config: dict[str, Any] = json.loads((folder / "config.json").read_text())
            self.shape = shape_of(config)
        except (OSError, ValueError, TypeError) as error:  # a ConfigError is a ValueError
            raise PretrainedError(f"{folder}/config.json: {error}") from error
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file: dict[str, Path] = {}
        types = set()
        for path in self._files():
            try:
                with safe_open(path, "pt") as shard:
                    for name in shard.keys():  # noqa: SIM118 - it is no mapping
                        entry = shard.get_slice(name)
                        self.shapes[name] = tuple(entry.get_shape())
                        self._file[name] = path
                        types.add(entry.get_dtype())
            except (OSError, SafetensorError) as error:
                raise PretrainedError(f"{path}: cannot be read: {error}") from error
        if strange := types - set(_TYPES):
            raise PretrainedError(f"{folder}: weights of type {', '.join(sorted(strange))}, wanted floats")
        stored = [_TYPES[kind] for kind in types]
        self.dtype = stored[0] if len(stored) == 1 else torch.float32

    def _files(self) -> list[Path]:
        index = self.place / "model.safetensors.index.json"
        if not index.is_file():
            return [self.place / "model.safetensors"]
        try:
            files = set(json.loads(index.read_text())["weight_map"].values())
            return sorted(self.place / file for file in files)
        except (OSError, KeyError, ValueError, AttributeError) as error:
            raise PretrainedError(f"{index}: cannot be read: {error}") from error

    def read(self, name: str, start: int, stop: int) -> Tensor:
        # Opened anew for each piece: a mapping that stays open keeps the pages it has touched.
        with safe_open(self._file[name], "pt") as shard:
            return shard.get_slice(name)[start:stop]


def _load(source: Source, dtype: torch.dtype | None) -> Pretrained:
    model = Pretrained(source.shape, blank=True)
    _fill(_parts(model), source, dtype)
    return model.eval()


def _parts(model: VLA | ValueModel | Pretrained) -> dict[str, nn.Module]:
    owner = model if isinstance(model, Pretrained) else model.prefix
    parts = {
        "vision": model.vision,
        "backbone": model.backbone,
        "table": owner.table,
        "image_norm": owner.image_norm,
        "image_projection": owner.image_projection,
    }
    return {name: part for name, part in parts.items() if part is not None}


def _fill(parts: Mapping[str, nn.Module], source: Source, dtype: torch.dtype | None) -> None:
    wanted = places(source.shape)
    stored = _account(source, wanted)
    used = {place.target.split(".")[0] for place in wanted.values()}
    targets: dict[str, Tensor] = {}
    for name in used:
        part = parts[name]
        if any(parameter.is_meta for parameter in part.parameters()):
            part.to(dtype or source.dtype).to_empty(device="cpu")
        targets.update({f"{name}.{tensor}": parameter.data for tensor, parameter in part.named_parameters()})
    unfit = {
        stored[name]: (place.shape, tuple(targets[place.target].shape))
        for name, place in wanted.items()
        if not _fits(place, targets[place.target])
    }
    if unfit:
        raise PretrainedError(f"{source.place}: not this model's weights", misshapen=unfit)
    for name, place in wanted.items():
        _copy(source, stored[name], place, targets[place.target])


def _account(source: Source, wanted: Mapping[str, Place]) -> dict[str, str]:
    """Canonical → stored names. Raises PretrainedError unless exactly the wanted tensors are there."""
    stored: dict[str, str] = {}
    unexpected: list[str] = []
    for name in source.shapes:
        bare = canonical(name)
        if bare is None:
            continue
        if bare in wanted and bare not in stored:
            stored[bare] = name
        else:
            unexpected.append(name)
    missing = [name for name in wanted if name not in stored]
    misshapen = {
        name: (source.shapes[name], wanted[bare].shape)
        for bare, name in stored.items()
        if source.shapes[name] != wanted[bare].shape
    }
    if missing or unexpected or misshapen:
        raise PretrainedError(
            f"{source.place}: not the weights its configuration describes", missing, unexpected, misshapen
        )
    return stored


def _fits(place: Place, target: Tensor) -> bool:
    rows, *rest = reversed(place.shape) if place.transposed else place.shape
    if place.target == "vision.positions":
        return target.shape[1:] == tuple(rest)
    return target.shape[1:] == tuple(rest) and target.shape[0] >= place.start + rows


def _copy(source: Source, name: str, place: Place, target: Tensor) -> None:
    rows = place.shape[0]
    if place.target == "vision.positions" and rows != target.shape[0]:
        target.copy_(resized(source.read(name, 0, rows), target.shape[0]))
        return
    step = max(1, _PIECE_BYTES * rows // (4 * torch.Size(place.shape).numel()))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        piece = source.read(name, start, stop)
        if place.transposed:
            target[:, start:stop] = piece.T
        else:
            target[place.start + start : place.start + stop] = piece


def resized(positions: Tensor, count: int) -> Tensor:
    """Positions of a square grid (n, width) → (count, width) of another, bicubic as in transformers."""
    old, new = round(len(positions) ** 0.5), round(count**0.5)
    grid = positions.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    scaled = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return scaled.permute(0, 2, 3, 1).reshape(count, -1)


def _compare(
    source: Source,
    found: BackboneConfig | VisionConfig | None,
    wanted: BackboneConfig | VisionConfig | ObjectConfig | None,
    free: set[str],
) -> None:
    """Raises PretrainedError where settings that the weights depend on differ, whatever the shapes say."""
    if found is None:
        return
    if wanted is None:
        raise PretrainedError(f"{source.place}: holds an image tower, and the model has none of its own")
    differing = [
        f"{field.name} is {getattr(found, field.name)}, wanted {getattr(wanted, field.name)}"
        for field in fields(found)
        if field.name not in free and getattr(found, field.name) != getattr(wanted, field.name)
    ]
    if differing:
        raise PretrainedError(f"{source.place}: not this model's: {'; '.join(differing)}")
