"""Checkpoints come back as they were, and refuse to come back as anything else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from recap_policy.checkpoint import (
    CheckpointError,
    load_policy,
    load_value,
    load_vision,
    read,
    save_policy,
    save_value,
    save_vision,
    tower_identity,
    vision_identity,
)
from recap_policy.config import ConfigError, VLAConfig
from recap_policy.interface import Sampling
from recap_policy.runtime import ObservationError, Policy
from recap_policy.sizes import value_config, vla_config
from recap_policy.text import GemmaTokenizer, TinyTokenizer
from recap_policy.value import ValueModel
from recap_policy.vla import VLA
from recap_policy.weights import identify, write
from recap_station.contract import Camera, load_station

STATION = load_station("aloha")
WORDS = TinyTokenizer.fit(["insert the peg", "reach"], 128)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, VLA]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    model = VLA(vla_config("tiny"), WORDS)
    states = torch.rand(64, 14)
    chunks = states[:, None] + torch.randn(64, 50, 14).cumsum(1) * 0.01
    model.fit_normalizers(chunks, states, torch.from_numpy(STATION.is_gripper))
    save_policy(
        model, folder / "policy", {"parent": None, "steps": 3}, station=STATION, prompts=["insert the peg"]
    )
    critic = ValueModel(value_config("value-tiny"), WORDS)
    critic.fit_normalizers(states)
    save_value(critic, folder / "value", {}, station=STATION, tower=tower_identity(model.vision))
    return folder / "policy", folder / "value", model


def _images(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 255, (96, 96, 3), np.uint8) for name in STATION.camera_names}


def test_weights_statistics_and_vocabulary_come_back(saved: tuple[Path, Path, VLA]) -> None:
    folder, _, model = saved
    loaded, checkpoint = load_policy(folder, STATION), read(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.tokenizer.words == WORDS.words
    assert loaded.config == model.config
    assert checkpoint.prompts == ("insert the peg",)
    assert checkpoint.lineage == {"parent": None, "steps": 3}
    assert checkpoint.station == STATION


def test_saving_replaces_the_folder_and_leaves_nothing_else(
    saved: tuple[Path, Path, VLA], tmp_path: Path
) -> None:
    model = saved[2]
    first = save_policy(model, tmp_path / "p", {}, station=STATION)
    assert save_policy(model, tmp_path / "p", {}, station=STATION) == first
    assert save_policy(model, tmp_path / "p", {}, station=STATION, prompts=["other"]) != first
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_checkpoint_of_another_robot_is_refused(saved: tuple[Path, Path, VLA]) -> None:
    joints = (replace(STATION.joints[0], name="left_base"), *STATION.joints[1:])
    with pytest.raises(CheckpointError, match="found joint 'left_waist', wanted 'left_base'"):
        load_policy(saved[0], replace(STATION, joints=joints))
    cameras = (Camera("base_camera", 128, 96, 30.0), *STATION.cameras[1:])
    with pytest.raises(
        CheckpointError, match="found camera base_camera of 96x96, wanted base_camera of 128x96"
    ):
        load_policy(saved[0], replace(STATION, cameras=cameras))


def test_missing_damaged_and_mistaken_checkpoints_are_refused(
    saved: tuple[Path, Path, VLA], tmp_path: Path
) -> None:
    _, value, model = saved
    with pytest.raises(CheckpointError, match=r"no checkpoint there: wanted config\.json"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="checkpoint of a value, wanted a policy"):
        load_policy(value)
    save_policy(model, tmp_path / "p", {}, station=STATION)
    weights = tmp_path / "p" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged: contents hash to"):
        load_policy(tmp_path / "p")
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        load_policy(tmp_path / "p")
    (tmp_path / "p" / "config.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, wanted 1"):
        load_policy(tmp_path / "p")


def test_value_function_of_another_tower_is_refused(saved: tuple[Path, Path, VLA]) -> None:
    with pytest.raises(CheckpointError, match=r"image tower .* wanted the policy's 0123"):
        load_value(saved[1], STATION, tower="0123")


def test_loaded_policy_gives_chunks_within_the_limits_and_a_value(saved: tuple[Path, Path, VLA]) -> None:
    policy = Policy.load(saved[0], saved[1], STATION, threads=1)
    chunk = policy.infer(_images(), STATION.home, "insert the peg", Sampling(beta=1.5))
    assert chunk.positions.shape == (50, 14)
    assert chunk.positions.dtype == np.float64
    assert (chunk.positions >= STATION.lower).all() and (chunk.positions <= STATION.upper).all()
    assert chunk.value is not None and -1 <= chunk.value <= 0
    policy.reset(7)
    once = policy.infer(_images(), STATION.home, "insert the peg").positions
    policy.reset(7)
    assert np.array_equal(once, policy.infer(_images(), STATION.home, "insert the peg").positions)


def test_observations_that_do_not_fit_are_refused(saved: tuple[Path, Path, VLA]) -> None:
    policy = Policy.load(saved[0], threads=1)
    images = _images()
    with pytest.raises(ObservationError, match="no image of camera left_wrist_camera"):
        policy.infer({"base_camera": images["base_camera"]}, STATION.home, "insert the peg")
    wrong = {**images, "base_camera": np.zeros((48, 96, 3), np.uint8)}
    with pytest.raises(
        ObservationError, match=r"image of base_camera is \(48, 96, 3\) uint8, wanted \(96, 96, 3\)"
    ):
        policy.infer(wrong, STATION.home, "insert the peg")
    state = STATION.home.copy()
    state[3] = np.nan
    with pytest.raises(ObservationError, match="state of joint left_forearm_roll is nan"):
        policy.infer(images, state, "insert the peg")
    with pytest.raises(ObservationError, match=r"states are \(1, 7\), wanted \(1, 14\)"):
        policy.infer(images, STATION.home[:7], "insert the peg")


def test_misspelt_configuration_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        vla_config("tinny")


def test_a_tower_is_the_same_alone_and_in_its_policy(saved: tuple[Path, Path, VLA], tmp_path: Path) -> None:
    folder, _, model = saved
    save_vision(model.vision, model.config, tmp_path / "vision", {})
    assert vision_identity(tmp_path / "vision") == vision_identity(folder) == vision_identity(saved[1])
    tower = load_vision(tmp_path / "vision")
    images = torch.from_numpy(np.stack(list(_images().values())))
    with torch.no_grad():
        torch.testing.assert_close(tower(images), model.vision(images))


# With Gemma's vocabulary and FAST


@pytest.fixture(scope="module")
def large(gemma_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VLA]:
    """`small`'s shapes at small widths, in bfloat16."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("large")
    elsewhere = folder / "elsewhere.json"  # deleted before saving: the checkpoint must not depend on it
    shutil.copy(gemma_file, elsewhere)
    model = VLA(_shape(vla_config("small")), GemmaTokenizer(elsewhere, action_codes=1000))
    states = torch.rand(64, 14)
    chunks = states[:, None] + torch.randn(64, 50, 14).cumsum(1) * 0.01
    model.fit_normalizers(chunks, states, torch.from_numpy(STATION.is_gripper))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    elsewhere.unlink()
    save_policy(model, folder / "policy", {"parent": "a"}, station=STATION, prompts=["insert the peg"])
    return folder / "policy", model.eval()


def _shape(whole: VLAConfig, vocabulary: int = 2000, width: int = 48) -> VLAConfig:
    return replace(
        whole,
        vision=replace(whole.vision, image_size=64, width=32, layers=1, heads=4, mlp=48),
        backbone=replace(
            whole.backbone, width=width, layers=2, head_dim=16, mlp=64, window=8, vocabulary=vocabulary
        ),
        expert=replace(whole.expert, width=32, mlp=48),
        prefix=replace(whole.prefix, action_codes=1000),
    )


def test_gemmas_tokenizer_and_fast_come_back(large: tuple[Path, VLA], gemma_file: Path) -> None:
    folder, model = large
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "fast.json", "tokenizer.json", "weights.safetensors"
    ]  # fmt: skip
    assert (folder / "tokenizer.json").read_bytes() == gemma_file.read_bytes()
    loaded = load_policy(folder, STATION)
    for name, tensor in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == tensor.dtype and torch.equal(found, tensor), name
    assert not [name for name, tensor in loaded.named_buffers() if tensor.is_meta]
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert model.fast is not None and loaded.fast is not None
    assert loaded.fast.to_dict() == model.fast.to_dict()
    features, state = torch.randn(1, *model.prefix.image_shape), torch.rand(1, 14)
    noise = torch.randn(1, 50, 14)
    one, other = (m.sample(features, state, ["pick up"], noise=noise, steps=2) for m in (model, loaded))
    assert one.subtask == other.subtask and torch.equal(one.actions, other.actions)


def test_what_was_loaded_is_saved_as_the_same_in_its_own_place(
    large: tuple[Path, VLA], tmp_path: Path
) -> None:
    shutil.copytree(large[0], tmp_path / "p")
    model, checkpoint = load_policy(tmp_path / "p"), read(tmp_path / "p")
    again = save_policy(
        model, tmp_path / "p", checkpoint.lineage, station=STATION, prompts=checkpoint.prompts
    )
    assert again == checkpoint.identity
    assert load_policy(tmp_path / "p").tokenizer is not None


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "fast.json", "config.json"])
def test_each_damaged_file_is_named(large: tuple[Path, VLA], tmp_path: Path, name: str) -> None:
    shutil.copytree(large[0], tmp_path / "p")
    file = tmp_path / "p" / name
    whole = file.read_bytes()
    if name == "config.json":
        file.write_bytes(whole.replace(b'"parent": "a"', b'"parent": "b"'))
        with pytest.raises(CheckpointError, match="damaged: contents hash to"):
            load_policy(tmp_path / "p")
        return
    for place in (len(whole) // 2, len(whole) - 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=rf"{name}: damaged: contents hash to .* wanted"):
            load_policy(tmp_path / "p")
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read: No such file"):
        load_policy(tmp_path / "p")


def test_weights_cut_short_or_without_a_header_are_refused(large: tuple[Path, VLA], tmp_path: Path) -> None:
    shutil.copytree(large[0], tmp_path / "p")
    file = tmp_path / "p" / "weights.safetensors"
    whole = file.read_bytes()
    wrong = {
        whole[:-100]: "damaged: [0-9]+ bytes of tensors, wanted [0-9]+",
        whole + b"more": "damaged: [0-9]+ bytes of tensors, wanted [0-9]+",
        whole[:4]: "damaged: header of",
        whole[:30]: "damaged: header of",
        whole[:8] + b"[" + whole[9:]: "damaged: no header of safetensors",
        whole.replace(b'"BF16"', b'"BF61"', 1): "damaged: no header of safetensors: 'BF61'",
    }
    for data, message in wrong.items():
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            load_policy(tmp_path / "p")


def test_a_tensor_that_differs_is_named_before_any_is_read(large: tuple[Path, VLA], tmp_path: Path) -> None:
    shutil.copytree(large[0], tmp_path / "p")
    file = tmp_path / "p" / "config.json"
    config = json.loads(file.read_text())
    config["model"]["expert"]["mlp"] = 64
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"tensor expert\.layers\.0\.mlp\..* is \(.*\), wanted"):
        load_policy(tmp_path / "p")


def test_fast_for_another_horizon_is_refused(large: tuple[Path, VLA], tmp_path: Path) -> None:
    shutil.copytree(large[0], tmp_path / "p")
    file = tmp_path / "p" / "config.json"
    config = json.loads(file.read_text())
    config["model"].update(horizon=40, action_tokens=40)
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="FAST for 50 steps of 14 joints, wanted 40 steps of 14"):
        load_policy(tmp_path / "p")


def test_a_model_without_a_tokenizer_is_not_saved(tmp_path: Path) -> None:
    model = VLA(_shape(vla_config("small")))
    with pytest.raises(CheckpointError, match="small has no tokenizer, wanted one to save with it"):
        save_policy(model, tmp_path / "p", {}, station=STATION)
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_the_old_checkpoint(
    large: tuple[Path, VLA], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(large[0], tmp_path / "p")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GemmaTokenizer, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_policy(large[1], tmp_path / "p", {}, station=STATION)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert read(tmp_path / "p").identity == read(large[0]).identity
    load_policy(tmp_path / "p")


def test_checkpoints_from_before_files_were_listed_are_read(
    saved: tuple[Path, Path, VLA], tmp_path: Path
) -> None:
    """Their identity is the same hash, of the whole of the weights' file and of the JSON."""
    shutil.copytree(saved[0], tmp_path / "p")
    file = tmp_path / "p" / "config.json"
    config = json.loads(file.read_text())
    for key in ("files", "identity"):
        del config[key]
    for key in ("max_subtask", "max_actions"):
        del config["model"][key]
    del config["model"]["prefix"]["action_codes"]
    weights = (tmp_path / "p" / "weights.safetensors").read_bytes()
    text = json.dumps(config, sort_keys=True).encode()
    config["identity"] = hashlib.sha256(weights + text).hexdigest()[:12]
    file.write_text(json.dumps(config, indent=1))
    assert load_policy(tmp_path / "p", STATION).config == saved[2].config
    assert tower_identity(saved[2].vision) == vision_identity(tmp_path / "p")


MEASURE = """
import ctypes
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, sys.argv[1])
from test_checkpoint import STATION, _shape

from recap_policy.checkpoint import load_policy, save_policy, tower_identity
from recap_policy.sizes import vla_config
from recap_policy.text import GemmaTokenizer
from recap_policy.vision import VisionTower
from recap_policy.vla import VLA


def memory(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) * 1024


def peak(call):
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # nothing is taken from what was freed before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    result = call()
    return memory("VmHWM") - before, result


def size(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def loading(folder, dtype):
    taken, model = peak(lambda: load_policy(folder, dtype=dtype))
    print("load", size(model), taken)


config = _shape(vla_config("small"), 20_000, 384)
config = replace(config, expert=replace(config.expert, width=512, mlp=8000))
VLA(config, blank=True)  # what PyTorch imports for the first of these is no part of a model
policy, tower = Path(sys.argv[3]), VisionTower(replace(config.vision, width=768, layers=3, mlp=3072))
print("identity", size(tower), peak(lambda: tower_identity(tower))[0])
model = VLA(config, GemmaTokenizer(sys.argv[2], 1000), blank=True, blank_expert=True)
for module in model.modules():
    for name, parameter in module.named_parameters(recurse=False):
        setattr(module, name, torch.nn.Parameter(torch.ones(parameter.shape)))
for dtype in (torch.float32, torch.bfloat16):
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    print("save", size(model), peak(lambda: save_policy(model, policy / str(dtype), {}, station=STATION))[0])
del model
for stored, other in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
    loading(policy / str(stored), None)
    loading(policy / str(stored), other)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to see the peak")
def test_the_peak_of_memory_is_the_model(gemma_file: Path, tmp_path: Path) -> None:
    """Saving and hashing take nothing like a copy, loading one model in the type that is asked for."""
    here = str(Path(__file__).parent)
    arguments = [sys.executable, "-c", MEASURE, here, str(gemma_file), str(tmp_path)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=250)
    found = [(what, int(size), int(peak)) for what, size, peak in map(str.split, run.stdout.splitlines())]
    assert [what for what, _, _ in found] == ["identity", "save", "save", *["load"] * 4]
    for what, size, peak in found:
        print(f"{what}: {size / 2**20:.0f} MiB, peak {peak / 2**20:.0f}")
        assert size > 60e6
        assert peak < (1.2 if what == "load" else 0.2) * size


def test_files_are_those_that_safetensors_writes(tmp_path: Path) -> None:
    types = torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool
    tensors = {f"{9 - i}.weight": torch.rand(3, i + 1).mul(9).to(dtype) for i, dtype in enumerate(types)}
    tensors |= {"scalar": torch.tensor(2.0), "nothing": torch.zeros(0, 4), "turned": torch.rand(5, 3).T}
    digest = write(tensors, tmp_path / "file")
    wanted = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert (tmp_path / "file").read_bytes() == wanted
    assert digest.hexdigest() == identify(tensors).hexdigest() == hashlib.sha256(wanted).hexdigest()


def test_identity_is_of_names_types_shapes_and_bytes() -> None:
    base = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
    flipped = base["b"].view(torch.uint8).clone()
    flipped[0] ^= 1
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["b"], "b": base["a"]},
        {**base, "b": base["b"].view(torch.int32)},
        {**base, "a": base["a"].T},
        {**base, "a": base["a"].half()},
        {**base, "b": flipped.view(torch.float32)},
        {"a": base["a"]},
        {**base, "c": torch.zeros(0)},
    ]
    found = [identify(tensors).hexdigest() for tensors in (base, *others)]
    assert len(set(found)) == len(found)
    assert identify(dict(reversed(base.items()))).hexdigest() == found[0]


@pytest.mark.parametrize("piece", [2**23, 1000])
def test_weights_are_converted_as_they_are_read_and_statistics_are_not(
    large: tuple[Path, VLA], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("recap_policy.weights._PIECE_BYTES", piece)
    narrow = large[1]
    wide = load_policy(large[0], STATION, torch.float32)
    save_policy(wide, tmp_path / "wide", {}, station=STATION)
    again = load_policy(tmp_path / "wide", STATION, torch.bfloat16)
    for model, dtype in ((wide, torch.float32), (again, torch.bfloat16)):
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        for name, tensor in narrow.state_dict().items():
            found = model.state_dict()[name]
            assert torch.equal(found, tensor.to(found.dtype)), name
        statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        assert {buffer.dtype for buffer in statistics} == {torch.float32}


def test_a_tiny_policy_and_a_value_can_be_read_in_another_type(saved: tuple[Path, Path, VLA]) -> None:
    for model in (load_policy(saved[0], dtype=torch.bfloat16), load_value(saved[1], dtype=torch.bfloat16)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model.prefix.normalizer.low.dtype == torch.float32
