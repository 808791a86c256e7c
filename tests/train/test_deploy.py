"""Exported networks compute what the run's network computes, for any batch, and say what they need."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from test_checkpoint import checkpoint

from pipeline.errors import InputError
from train import deploy
from train.__main__ import main
from train.checkpoint import Checkpoint, save_checkpoint
from train.models import build
from train.volume_spec import VolumeSpec


def exported(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "temporal"
    save_checkpoint(folder / "checkpoint-00000007.pt", checkpoint())
    return folder


def test_torchscript_computes_what_the_network_does(run: Path, tmp_path: Path) -> None:
    result = exported(run, "--torchscript", tmp_path / "net.ts")
    assert result.exit_code == 0, result.output
    made = checkpoint()
    inputs = torch.randn(5, made.volume.channels, made.volume.crop, made.volume.crop)
    extra = {deploy.ABOUT: ""}
    loaded = torch.jit.load(str(tmp_path / "net.ts"), _extra_files=extra)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(inputs), made.model()(inputs), rtol=1e-4, atol=1e-5)
    about = json.loads(extra[deploy.ABOUT])
    assert json.loads(about["heads"]) == {name: list(names) for name, names in made.heads.items()}
    assert VolumeSpec.from_dict(json.loads(about["volume"])) == made.volume
    assert exported(run, "--torchscript", tmp_path / "net.ts").exit_code == 1, "it is there already"


def test_a_place_that_cannot_be_written_is_one_message(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = exported(run, "--torchscript", tmp_path / "file" / "net.ts")
    assert done.exit_code == 1
    assert "cannot be written" in done.output
    done = exported(run, "--torchscript", Path("/proc/net.ts"))
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)


def test_onnx_computes_what_the_network_does(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    result = exported(run / "checkpoint-00000007.pt", "--onnx", tmp_path / "net.onnx")
    assert result.exit_code == 0, result.output
    made = checkpoint()
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["inputs"]
    for count in (1, 6):
        inputs = torch.randn(count, made.volume.channels, made.volume.crop, made.volume.crop)
        with torch.inference_mode():
            expected = made.model()(inputs).numpy()
        (found,) = session.run(None, {"inputs": inputs.numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["heads"]) == {name: list(names) for name, names in made.heads.items()}


@pytest.mark.parametrize(("model", "channels"), [("cnn_m_2048", 3), ("cnn_m_2048", 4), ("vgg16_gap", 3)])
def test_other_networks_are_exported_too(tmp_path: Path, model: str, channels: int) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    made = checkpoint()
    stream = "spatial" if channels == 3 else "temporal"
    made.volume = VolumeSpec(stream=stream, crop=48, short_side=64, length=2)  # type: ignore[arg-type]
    made.recipe = {**made.recipe, "model": model, "width": 1.0}
    made.weights = build(model, channels, sum(map(len, made.heads.values())), crop=48).state_dict()
    assert deploy.write_onnx(made, tmp_path / "net.onnx") < 1e-4
    assert deploy.write_torchscript(made, tmp_path / "net.ts") < 1e-4


def test_outputs_that_differ_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Checkpoint = checkpoint()
    other = checkpoint()
    torch.nn.init.normal_(other.weights["fc.weight"])
    networks = iter([made.model()])
    expected = other.model()
    trace = torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", lambda network, inputs: trace(expected, inputs))
    monkeypatch.setattr(made, "model", lambda: next(networks))
    with pytest.raises(InputError, match="outputs differ from the network's"):
        deploy.write_torchscript(made, tmp_path / "net.ts")
    assert list(tmp_path.iterdir()) == []


def test_a_format_must_be_named(run: Path) -> None:
    result = exported(run)
    assert result.exit_code == 2
    assert "--onnx FILE, --torchscript FILE" in result.output
