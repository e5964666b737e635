import os
from pathlib import Path
import pickle

import pytest
from safetensors.torch import save_file
import torch
from torch import nn

from lit_distill.models import load_strictly, read_state_dict
from lit_distill.models.weights import other_depth_in


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return nn.Linear(3, 2).state_dict()


def test_reads_both_formats(tmp_path, state) -> None:
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        read = read_state_dict(tmp_path / name)
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize("protocol", [2, 4])
def test_refuses_a_pickle_with_code_and_does_not_run_it(tmp_path, protocol) -> None:
    trace = tmp_path / "ran"
    torch.save({"w": Payload(trace)}, tmp_path / "a.pt", pickle_protocol=protocol)
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Payload(trace), protocol=protocol))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=r"refused .*pickle that would run"):
            read_state_dict(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_names_a_truncated_file(tmp_path, state, suffix, keep) -> None:
    path = tmp_path / f"w.{suffix}"
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"cannot read .*truncated or not a weights file"):
        read_state_dict(path)


def test_refuses_what_is_no_state_dict(tmp_path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "dict.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"expected a state dict .* got list"):
        read_state_dict(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="got a dict with epoch: int"):
        read_state_dict(tmp_path / "dict.pt")
    with pytest.raises(ValueError, match="cannot read"):
        read_state_dict(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="is a directory"):
        read_state_dict(tmp_path)


def test_names_the_first_keys_that_do_not_fit() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    state = nn.Sequential(nn.Linear(4, 2)).state_dict() | {"head.a": torch.zeros(1)}
    message = (
        r"do not fit Sequential: keys 2 missing \(1.weight, 1.bias\); 1 unexpected \(head.a\); "
        r"1 of another shape \(0.weight \(2, 4\) instead of \(2, 3\)\)"
    )
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        load_strictly(model, state, "file")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Net(nn.Module):
    def __init__(self, depth: int, head: bool = True, dim: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dim, 1), nn.BatchNorm2d(dim))
        self.net = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(dim, dim) for _ in range(depth)])})
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.Linear(dim, dim)) if head else nn.Linear(dim, dim)


def test_tells_another_depth_from_another_network() -> None:
    def said(weights: nn.Module, network: nn.Module) -> list[str]:
        with pytest.raises(ValueError, match="do not fit") as strictly:
            load_strictly(network, weights.state_dict(), "file")
        with pytest.raises(RuntimeError, match=r"Error\(s\) in loading") as torchs:
            network.load_state_dict(weights.state_dict())
        return [str(strictly.value), other_depth_in(str(torchs.value))]

    for weights, network in ((12, 6), (6, 12), (2, 1)):
        for dim in (2, 3):
            expected = f"net.blocks has {weights} blocks in the weights, {network} in the network; "
            strictly, from_torch = said(Net(weights), Net(network, dim=dim))
            assert f"do not fit Net: {expected}keys " in strictly
            assert from_torch == expected
    for weights, network in ((Net(2, head=False), Net(2)), (Net(2, dim=3), Net(2)), (nn.Linear(2, 2), Net(2))):
        strictly, from_torch = said(weights, network)
        assert "in the network" not in strictly
        assert from_torch == ""
