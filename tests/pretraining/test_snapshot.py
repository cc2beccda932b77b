"""Snapshots: a run that was packed and unpacked goes on where it was, and wrong files are refused."""

import pytest
import torch
from safetensors.torch import save_file

from tttabpfn.pretraining import state
from tttabpfn.pretraining.snapshot import main, pack, read_header, unpack
from tttabpfn.pretraining.train import Trainer


@pytest.fixture
def run(config, tmp_path):
    Trainer(config, tmp_path / "run").run(stop_after=3, report=lambda record: None)
    return tmp_path / "run"


def test_an_unpacked_run_goes_on_and_ends_close_to_the_uninterrupted_one(config, run, tmp_path):
    file = pack(run, tmp_path / "kept" / "state.safetensors", config, {"rows": 7})
    header = read_header(file)
    assert (header["step"], header["notes"], header["config"]["seed"]) == (3, {"rows": 7}, 3)
    assert file.stat().st_size < 0.6 * state.path(run).stat().st_size
    unpack(file, tmp_path / "again")
    ours, theirs = (Trainer(config, folder, resume=True) for folder in (tmp_path / "again", run))
    assert ours.step == theirs.step == 3
    assert ours.seconds == theirs.seconds
    for name, value in theirs.ema.items():
        torch.testing.assert_close(ours.ema[name], value, rtol=1e-3, atol=1e-4)
    for name, moments in theirs.optimizer.state.items():
        for key, value in moments.items():
            torch.testing.assert_close(ours.optimizer.state[name][key], value, rtol=1e-2, atol=1e-6)
    for trainer in (ours, theirs):
        trainer.run(report=lambda record: None)
    for name, value in theirs.model.state_dict().items():
        assert (ours.model.state_dict()[name] - value).abs().max() < 2e-2, name


def test_the_command_line_packs_and_unpacks(run, tmp_path):
    file = tmp_path / "state.safetensors"
    assert main(["pack", str(run), str(file), "--config", "cpu", "--notes", '{"rows": 12}']) == 0
    assert read_header(file)["notes"] == {"rows": 12}
    assert main(["unpack", str(file), str(tmp_path / "again")]) == 0
    assert state.read(state.path(tmp_path / "again"), torch.device("cpu"))["step"] == 3


def test_an_existing_checkpoint_is_not_overwritten(config, run, tmp_path, capsys):
    file = pack(run, tmp_path / "state.safetensors", config)
    with pytest.raises(FileExistsError, match="move it away"):
        unpack(file, run)
    with pytest.raises(SystemExit) as stopped:
        main(["unpack", str(file), str(run)])
    assert stopped.value.code == 2
    assert "exists" in capsys.readouterr().err


def test_files_that_are_missing_or_no_snapshots_are_refused(config, tmp_path):
    with pytest.raises(FileNotFoundError, match="no snapshot"):
        read_header(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        pack(tmp_path, tmp_path / "state.safetensors", config)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="snapshot of format 1, got format None"):
        unpack(tmp_path / "other.safetensors", tmp_path / "run")
