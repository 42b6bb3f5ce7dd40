"""A small tokenizer.json in Gemma's format; and lets the tests of this folder share `small_models.py`: pytest
imports each test file on its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

WORDS = "insert the peg into socket pick up fast no mistake positive negative State Task Advantage Subtask"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small products are slower on several; and the same seed for every test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gemma_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like Gemma's: spaces are U+2581, no merges across words, unknown letters as bytes, unused ids last."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Split("▁", "merged_with_next")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=120, show_progress=False, initial_alphabet=list(":,;▁")
    )
    trained.train_from_iterator([WORDS, *(f" {word}" for word in WORDS.split())] * 2, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    digits = list("0123456789")
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "\n"]
    vocabulary += [f"<0x{byte:02X}>" for byte in range(256)] + pieces + [d for d in digits if d not in pieces]
    unused = [f"<unused{index}>" for index in range(1500)]
    vocabulary += unused
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={piece: index for index, piece in enumerate(vocabulary)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *unused]
    made.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in special])
    made.add_tokens([tokenizers.AddedToken("\n", normalized=False)])
    file = tmp_path_factory.mktemp("gemma") / "tokenizer.json"
    made.save(str(file))
    return file
