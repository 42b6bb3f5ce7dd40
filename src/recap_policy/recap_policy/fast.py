"""FAST: chunks of actions ↔ a few dozen tokens (arXiv 2501.09747).

A chunk is quantile-normalised (1 % .. 99 % to [-1, 1]), its DCT-II over time is multiplied by `scale` and
rounded, the integers are laid out frequency by frequency (the lowest of all joints first), and byte-pair
encoding (BPE) learnt from data packs them: the many zeros of the high frequencies cost next to nothing.

Chunks are taken in whatever space the caller predicts in; arms relative to the measured state compress best.
Shapes: B batch, H horizon [steps], D joints.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import tokenizers
from numpy.typing import ArrayLike, NDArray

from recap_policy import bpe as bpes
from recap_station.files import write_json

FORMAT = 1
FILE = "fast.json"
_PROBED = 4096  # code points looked at to learn what a BPE can express; the universal one knows about 1,000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class FastError(bpes.TokenizerError):
    """Actions or a tokenizer that do not fit. One line: value found, value wanted, place."""


class FastWarning(UserWarning):
    """Something was lost that the caller may want to know of, such as a clipped coefficient."""


@dataclass(frozen=True, eq=False)
class Quantiles:
    """Each joint's own range, which becomes [-1, 1]. low, high: (D,) in the actions' unit, low < high."""

    low: Floats
    high: Floats

    def __post_init__(self) -> None:
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        if low.ndim != 1 or low.shape != high.shape or not (np.isfinite(high - low) & (high > low)).all():
            raise FastError(f"quantiles {low} and {high}, wanted finite vectors, low below high")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @staticmethod
    def fit(actions: ArrayLike, least: float = 0.01, reach: float = 4.0) -> Quantiles:
        """Quantiles 1 % and 99 % of (…, D) actions.

        Half a range is at least `least`, so that a joint that never moves stays quiet, and so wide that no
        action lies beyond ±`reach`: a gripper that closes in one chunk of a thousand has no range between its
        quantiles, and would otherwise be normalised to hundreds.
        """
        array = _finite(actions)
        flat = array.reshape(-1, array.shape[-1]) if array.ndim else array
        if flat.ndim != 2 or not flat.size:
            raise FastError(f"actions of shape {array.shape}, wanted (…, joints) and at least one")
        low, high = np.quantile(flat, (0.01, 0.99), axis=0)
        middle = (low + high) / 2
        half = np.maximum((high - low) / 2, np.abs(flat - middle).max(0) / reach).clip(min=least)
        return Quantiles(middle - half, middle + half)

    @property
    def half(self) -> Floats:
        return (self.high - self.low) / 2

    def normalise(self, actions: Floats) -> Floats:
        return (actions - self.low) / self.half - 1.0

    def restore(self, normalised: Floats) -> Floats:
        return (normalised + 1.0) * self.half + self.low


@dataclass(frozen=True, eq=False)
class Decoded:
    """actions: (B, H, D) float32, always finite. repaired: (B,) int64, how many numbers or tokens of a row
    were missing, surplus or impossible; 0 where the tokens are a chunk's as `Fast.encode` gives them."""

    actions: NDArray[np.float32]
    repaired: Ints


class Fast:
    """A FAST tokenizer for chunks of one shape; made by `Fast.fit`, `Fast.load` or `Fast.load_universal`."""

    def __init__(
        self, bpe: tokenizers.Tokenizer, quantiles: Quantiles, horizon: int, scale: float, minimum: int
    ) -> None:
        """bpe: over the code points `coefficient - minimum`. Raises FastError where it cannot express 0."""
        if horizon < 1 or not 0 < scale < np.inf or minimum > 0:
            raise FastError(
                f"horizon {horizon}, scale {scale}, minimum {minimum}: wanted one step or more, "
                "a positive scale and no positive minimum"
            )
        self.bpe, self.quantiles = bpe, quantiles
        self.horizon, self.scale, self.minimum = horizon, float(scale), minimum
        self.dof = len(quantiles.low)
        self._bytes = bpes.token_bytes(bpe)
        self._known = self._alphabet()
        self.lowest, self.highest = int(self._known[0]), int(self._known[-1])

    @staticmethod
    def fit(chunks: ArrayLike, vocabulary: int = 1024, scale: float = 10.0, sample: int = 2048) -> Fast:
        """Learn quantiles, alphabet and merges from (N, H, D) chunks.

        The alphabet spans the data's coefficients, and every chunk within the quantiles: by Parseval their
        coefficients are at most √H in size. Merges are learnt from `sample` chunks, evenly spread: more
        take longer to learn from and hardly shorten the sequences.
        Raises FastError on a NaN, or where the alphabet leaves no room for merges in `vocabulary`.
        """
        array = _finite(chunks)
        if array.ndim != 3 or not array.size:
            raise FastError(f"chunks of shape {array.shape}, wanted (chunks, steps, joints) and at least one")
        quantiles, horizon = Quantiles.fit(array), array.shape[1]
        coefficients = _coefficients(array, quantiles, scale)
        inside = int(np.ceil(scale * np.sqrt(horizon)))
        lowest = min(int(coefficients.min()), -inside)
        highest = max(int(coefficients.max()), inside)
        alphabet = highest - lowest + 1
        if alphabet >= vocabulary:
            raise FastError(
                f"{alphabet} different coefficients ({lowest} .. {highest}), wanted fewer than the "
                f"vocabulary's {vocabulary}: lower the scale ({scale}) or raise the vocabulary"
            )
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.decoder = tokenizers.decoders.Fuse()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=[chr(code) for code in range(alphabet)],
        )
        picked = np.unique(np.linspace(0, len(array) - 1, min(sample, len(array))).astype(np.int64))
        bpe.train_from_iterator(_texts(coefficients[picked] - lowest), trainer)
        return Fast(bpe, quantiles, horizon, scale, lowest)

    @property
    def size(self) -> int:
        """Number of tokens; ids are 0 .. size - 1."""
        return len(self._bytes)

    @property
    def bound(self) -> Floats:
        """(D,) How far a number may lie from decode(encode(·)), in the actions' unit.

        Rounding moves each coefficient by at most ½; a step is Σ_k basis[k, t]·coefficient[k] / scale, so it
        moves by at most max_t Σ_k |basis[k, t]| / (2·scale), below √H / (2·scale), times half the quantile
        range. Root mean square over a chunk's steps: below half the range / (2·scale), by Parseval. Both hold
        while no coefficient is clipped (`encode` warns), hence for all chunks within the quantiles.
        """
        basis = scipy.fft.idct(np.eye(self.horizon), axis=1, norm="ortho")  # row k: the k-th cosine over time
        return np.abs(basis).sum(0).max() / (2 * self.scale) * self.quantiles.half

    def encode(self, chunks: ArrayLike) -> list[Ints]:
        """(B, H, D) → a row of ids each, of different lengths; equal chunks give equal ids.

        Coefficients outside the alphabet become the nearest within, with a FastWarning.
        Raises FastError on a NaN and on a shape that the tokenizer was not fitted for.
        """
        array = _finite(chunks)
        if array.ndim != 3 or array.shape[1:] != (self.horizon, self.dof):
            raise FastError(
                f"chunks of shape {array.shape}, wanted (any, {self.horizon}, {self.dof}): "
                f"FAST was fitted for {self.horizon} steps of {self.dof} joints"
            )
        coefficients = _coefficients(array, self.quantiles, self.scale)
        kept = self._expressible(coefficients)
        if lost := int((kept != coefficients).sum()):
            worst = int(np.abs(coefficients).max())
            warnings.warn(
                f"{lost} of {kept.size} FAST coefficients clipped to {self.lowest} .. {self.highest} "
                f"or a gap therein, the largest is {worst}: actions far outside what was fitted",
                FastWarning,
                stacklevel=2,
            )
        codes = (kept - self.minimum).astype(np.int64)
        encoded = self.bpe.encode_batch_fast(_texts(codes), add_special_tokens=False)
        return [np.array(row.ids, np.int64) for row in encoded]

    def decode(self, ids: Iterable[Iterable[int]]) -> Decoded:
        """Rows of any integers → chunks, whatever they are; never raises, never NaN.

        Unknown ids are left out, numbers outside the alphabet become 0, missing numbers (the highest
        frequencies) are 0, surplus ones are dropped; `Decoded.repaired` counts all of these.
        """
        rows = [self._numbers(row) for row in ids]
        wanted = (len(rows), self.horizon, self.dof)
        coefficients = np.array([numbers for numbers, _ in rows], np.float64).reshape(wanted)
        normalised = scipy.fft.idct(coefficients / self.scale, axis=1, norm="ortho")
        actions = self.quantiles.restore(normalised).astype(np.float32)
        return Decoded(actions, np.array([repaired for _, repaired in rows], np.int64))

    def _numbers(self, ids: Iterable[int]) -> tuple[Ints, int]:
        """One row of ids → H·D coefficients and the count of repairs."""
        found = [self._bytes.get(int(token)) for token in ids]
        known = [piece for piece in found if piece is not None]
        # Tokens of the universal BPE may end inside a character: what is left broken becomes U+FFFD, which
        # lies outside every alphabet.
        text = b"".join(known).decode(errors="replace")
        numbers = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64) + self.minimum
        wrong = (numbers < self.lowest) | (numbers > self.highest)
        wanted = self.horizon * self.dof
        kept = np.where(wrong, 0, numbers)[:wanted]
        repaired = len(found) - len(known) + int(wrong.sum()) + abs(wanted - len(numbers))
        return np.pad(kept, (0, wanted - len(kept))), repaired

    def _alphabet(self) -> Ints:
        """(n,) ascending: the coefficients that the BPE gives back as it got them."""
        texts = [chr(code) for code in range(_PROBED)]
        encoded = self.bpe.encode_batch_fast(texts, add_special_tokens=False)
        known = np.array(
            [
                b"".join(self._bytes[token] for token in row.ids) == text.encode()
                for row, text in zip(encoded, texts, strict=True)
            ]
        )
        zero = -self.minimum
        # A byte-level BPE can spell every code point; the alphabet it was learnt on is among its tokens.
        own = np.array([self.bpe.token_to_id(text) is not None for text in texts])
        if zero < _PROBED and own[zero]:
            known &= own
        if zero >= _PROBED or not known[zero]:
            raise FastError(f"BPE without coefficient 0, code point {zero}: the minimum is not its own")
        return np.flatnonzero(known) + self.minimum

    def _expressible(self, coefficients: Floats) -> Floats:
        """Each coefficient, or the nearest that the BPE can express."""
        above = np.searchsorted(self._known, coefficients).clip(max=len(self._known) - 1)
        high, low = self._known[above], self._known[(above - 1).clip(min=0)]
        return np.where(high - coefficients <= coefficients - low, high, low)

    # On disk

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON, for a checkpoint's configuration or `save`."""
        return {
            "format": FORMAT,
            "horizon": self.horizon,
            "scale": self.scale,
            "minimum": self.minimum,
            "low": self.quantiles.low.tolist(),
            "high": self.quantiles.high.tolist(),
            "bpe": json.loads(self.bpe.to_str()),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any], place: str = FILE) -> Fast:
        """Inverse of `to_dict`. Raises TokenizerError, naming `place`, on anything missing or wrong."""
        if data.get("format") != FORMAT:
            raise FastError(f"{place}: format {data.get('format')!r}, wanted {FORMAT}")
        bpe = bpes.parse(json.dumps(data.get("bpe")), place)
        try:
            quantiles = Quantiles(np.array(data["low"], float), np.array(data["high"], float))
            return Fast(bpe, quantiles, int(data["horizon"]), float(data["scale"]), int(data["minimum"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FastError(f"{place}: no FAST tokenizer: {error!s}") from error

    def save(self, folder: str | Path) -> None:
        """Write `fast.json`, in one step: a crash leaves the old one or the new one."""
        write_json(Path(folder) / FILE, self.to_dict())

    @staticmethod
    def load(folder: str | Path) -> Fast:
        """Read what `save` wrote. Raises TokenizerError."""
        path = Path(folder) / FILE
        return Fast.from_dict(bpes.read_json(path), str(path))

    @staticmethod
    def load_universal(folder: str | Path, horizon: int, quantiles: Quantiles) -> Fast:
        """Read a folder in the format of `physical-intelligence/fast`: FAST+, learnt on many robots.

        `tokenizer.json` is a byte-level BPE, `processor_config.json` gives `scale` and `min_token`. It knows
        no robot, so this one's ranges are given (`Quantiles.fit` on its chunks), and so is the horizon, which
        must be the folder's where that names one. Raises TokenizerError.
        """
        path, file = Path(folder) / "processor_config.json", Path(folder) / "tokenizer.json"
        config = bpes.read_json(path)
        for key, wanted in (("time_horizon", horizon), ("action_dim", len(quantiles.low))):
            if (found := config.get(key)) not in (None, wanted):
                raise FastError(f"{path}: {key} is {found}, wanted {wanted}")
        try:
            scale, minimum = float(config["scale"]), int(config["min_token"])
        except (KeyError, TypeError, ValueError) as error:
            raise FastError(f"{path}: entry missing or wrong: {error!s}") from error
        return Fast(bpes.parse(bpes.read_text(file), str(file)), quantiles, horizon, scale, minimum)


def _finite(actions: ArrayLike) -> Floats:
    array = np.asarray(actions, np.float64)
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0]
        value = array[tuple(place)]
        raise FastError(f"actions[{', '.join(map(str, place))}] is {value}, wanted finite numbers")
    return array


def _coefficients(chunks: Floats, quantiles: Quantiles, scale: float) -> Floats:
    """(B, H, D) → (B, H·D) whole numbers, frequency by frequency."""
    transformed = scipy.fft.dct(quantiles.normalise(chunks), axis=1, norm="ortho")
    return np.rint(transformed * scale).reshape(len(chunks), -1)


def _texts(codes: NDArray[Any]) -> list[str]:
    """(B, N) code points → B strings of N characters."""
    return [row.tobytes().decode("utf-32-le") for row in codes.astype("<u4")]
