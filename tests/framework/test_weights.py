"""What reading and loading weights promise, and what they say when it cannot be done."""

import os
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from framework.errors import WeightsError
from framework.weights import fit_channels, load_strictly, read_weights


def network(width: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) <= 10
    return message


class TestReading:
    def test_every_kind_of_file_gives_the_same_tensors(self, tmp_path: Path):
        state = network().state_dict()
        torch.save(state, tmp_path / "new.pth")
        torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
        save_file(state, tmp_path / "safe.safetensors")
        for name in ("new.pth", "old.bin", "safe.safetensors"):
            assert_same(read_weights(tmp_path / name), state)
        assert_same(read_weights(str(tmp_path / "new.pth")), state)

    @pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["teacher", "backbone"], ["anything"]])
    def test_finds_the_state_dict_in_a_training_checkpoint(self, tmp_path: Path, keys: list[str]):
        net = network()
        optimizer = torch.optim.Adam(net.parameters())
        net(torch.rand(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        content: dict = net.state_dict()
        for key in reversed(keys):
            content = {"epoch": 3, "args": Namespace(lr=0.1), "optimizer": optimizer.state_dict(), key: content}
        torch.save(content, tmp_path / "last.ckpt")
        assert_same(read_weights(tmp_path / "last.ckpt"), net.state_dict())

    def test_prefers_averaged_weights(self, tmp_path: Path):
        raw, averaged = network(seed=0).state_dict(), network(seed=1).state_dict()
        torch.save({"state_dict": raw, "state_dict_ema": averaged}, tmp_path / "last.pth")
        assert_same(read_weights(tmp_path / "last.pth"), averaged)
        torch.save({"student": raw, "teacher": averaged}, tmp_path / "last.pth")
        assert_same(read_weights(tmp_path / "last.pth"), averaged)

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
    def test_strips_the_prefixes_of_wrappers(self, tmp_path: Path, prefix: str):
        state = network().state_dict()
        torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "ddp.pth")
        assert_same(read_weights(tmp_path / "ddp.pth"), state)

    def test_a_layer_called_module_keeps_its_name(self, tmp_path: Path):
        state = {"module.weight": torch.ones(1), "head.weight": torch.ones(2)}
        torch.save(state, tmp_path / "own.pth")
        assert_same(read_weights(tmp_path / "own.pth"), state)

    def test_missing_names_the_nearest_file(self, tmp_path: Path):
        torch.save(network().state_dict(), tmp_path / "resnet18.pth")
        assert "did you mean 'resnet18.pth'?" in refusal(tmp_path / "resnet-18.pth")
        assert f"no folder {tmp_path / 'weights'}" in refusal(tmp_path / "weights" / "resnet18.pth")
        assert "is a folder" in refusal(tmp_path)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
    @pytest.mark.parametrize("name", ["new.pth", "old.pth", "safe.safetensors"])
    def test_truncated(self, tmp_path: Path, name: str, share: float):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file(network().state_dict(), path)
        else:
            torch.save(network().state_dict(), path, _use_new_zipfile_serialization=name == "new.pth")
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        assert "copy or download it again" in refusal(path)

    def test_other_files(self, tmp_path: Path):
        page, pointer = tmp_path / "page.pth", tmp_path / "pointer.safetensors"
        page.write_text("<html>404</html>")
        pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        assert "copy or download it again" in refusal(page)
        assert "git lfs pull" in refusal(pointer)

    @pytest.mark.parametrize("new", [True, False])
    def test_never_unpickles(self, tmp_path: Path, new: bool):
        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "sprung"),)

        torch.save(
            {"model": network().state_dict(), "trap": Trap()}, tmp_path / "x.pth", _use_new_zipfile_serialization=new
        )
        message = refusal(tmp_path / "x.pth")
        assert "weights_only=False" in message
        assert "mkdir" in message
        assert not (tmp_path / "sprung").exists()
        (tmp_path / "bare.pth").write_bytes(pickle.dumps(Trap()))
        refusal(tmp_path / "bare.pth")
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {"epoch": 3, "lr": 0.1}, {}])
    def test_no_state_dict(self, tmp_path: Path, content: object):
        torch.save(content, tmp_path / "x.pth")
        message = refusal(tmp_path / "x.pth")
        assert "holds no state dict" in message
        assert all(key in message for key in content) if isinstance(content, dict) else True

    def test_two_state_dicts_are_not_guessed_between(self, tmp_path: Path):
        torch.save({"generator": network().state_dict(), "critic": network().state_dict()}, tmp_path / "x.pth")
        assert "generator, critic" in refusal(tmp_path / "x.pth")


class TestLoading:
    def test_all(self):
        net, other = network(seed=0), network(seed=1)
        load_strictly(net, other.state_dict(), "x.pth")
        assert_same(net.state_dict(), other.state_dict())

    def test_nothing_where_something_does_not_fit(self):
        net = network()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        state = network(width=5, seed=1).state_dict()
        del state["2.bias"]
        state |= {f"head.{i}": torch.ones(1) for i in range(20)}
        with pytest.raises(WeightsError) as caught:
            load_strictly(net, state, "weights/x.pth")
        message = str(caught.value)
        assert "weights/x.pth does not fit Sequential" in message
        assert "1 of 9 keys missing: 2.bias" in message
        assert "20 not in the network: head.0, head.1, head.2, ..." in message
        assert "0.weight is (5, 3, 3, 3), wanted (4, 3, 3, 3)" in message
        assert len(message.splitlines()) <= 10
        assert max(map(len, message.splitlines())) < 300
        assert_same(net.state_dict(), before)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"2.bias": None}, "keys missing: 2.bias"),
            ({"head.weight": torch.ones(1)}, "1 not in the network: head.weight"),
            ({"2.bias": torch.ones(3)}, r"1 of another shape: 2.bias is \(3,\), wanted \(2,\)"),
        ],
    )
    def test_nothing_for_a_single_problem(self, change: dict, problem: str):
        net = network()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        state = {name: x for name, x in (network(seed=1).state_dict() | change).items() if x is not None}
        with pytest.raises(WeightsError, match=problem):
            load_strictly(net, state, "x.pth")
        assert_same(net.state_dict(), before)

    def test_exceptions_are_named(self):
        net, state = network(), network(seed=1).state_dict()
        bias = net[2].bias.detach().clone()
        del state["2.bias"]
        load_strictly(net, state | {"fc.weight": torch.ones(1)}, "x.pth", may_lack={"2.bias"}, may_exceed={"fc.weight"})
        assert torch.equal(net[2].bias, bias)
        assert torch.equal(net[2].weight, state["2.weight"])

    def test_counters_of_batch_norm_may_lack(self):
        net, state = network(), network(seed=1).state_dict()
        del state["1.num_batches_tracked"]
        load_strictly(net, state, "x.pth")
        assert torch.equal(net[0].weight, state["0.weight"])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
def test_fitted_filters_give_the_same_on_equal_channels(channels: int):
    filters, grey = torch.randn(5, 3, 3, 3), torch.randn(2, 1, 8, 9)
    fitted = fit_channels(filters, channels)
    assert fitted.shape == (5, channels, 3, 3)
    want = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), filters)
    got = nn.functional.conv2d(grey.expand(-1, channels, -1, -1), fitted)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert channels != 3 or torch.equal(fitted, filters)
