from safetensors.torch import load_file
import torch

from lit_distill import DigitsCNN, FrozenTeacher
from lit_distill.datamodules import DigitsDataModule
from lit_distill.models.digits_cnn import WEIGHTS


def accuracy() -> float:
    data = DigitsDataModule(eval_batch_size=360)
    data.setup()
    image, target, _ = next(iter(data.val_dataloader()))
    return (FrozenTeacher(DigitsCNN(pretrained=True))(image).argmax(dim=1) == target).float().mean().item()


def test_the_shipped_weights_are_small_and_right_on_the_held_out_split() -> None:
    assert WEIGHTS.stat().st_size < 300_000
    assert accuracy() >= 0.99


def test_pretrained_loads_the_shipped_weights() -> None:
    shipped, loaded = load_file(WEIGHTS), DigitsCNN(pretrained=True).state_dict()
    assert shipped.keys() == loaded.keys()
    assert all(torch.equal(shipped[key], loaded[key]) for key in shipped)
