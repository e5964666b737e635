import pytest
import torch

from lit_distill.models import PixelInput


def test_uint8_and_float_give_the_same() -> None:
    image = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    pixels = PixelInput([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    expected = (image / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    torch.testing.assert_close(pixels(image), expected)
    torch.testing.assert_close(pixels(image / 255), expected)


def test_without_statistics_a_float_batch_is_taken_as_it_comes() -> None:
    image = torch.randn(2, 3, 4, 4)
    assert PixelInput()(image) is image


def test_says_what_is_no_batch_of_its_images() -> None:
    pixels = PixelInput([0.5] * 3, [0.5] * 3)
    expected = r"expected a batch of images \(B, C, H, W\), got shape "
    for shape, message in (
        ((3, 8, 8), expected + r"\(3, 8, 8\); of one image make a batch with image\[None\]"),
        ((8, 8), expected + r"\(8, 8\)"),
        ((2, 4, 8, 8), r"expected images of 3 channels, as mean and std are for, got shape \(2, 4, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            pixels(torch.rand(shape))
    with pytest.raises(ValueError, match="expected a batch of images"):
        PixelInput(input_size=4)(torch.rand(3, 8, 8))
    assert pixels(torch.rand(2, 1, 8, 8)).shape == (2, 3, 8, 8)  # grey
    assert PixelInput([0.5], [0.5])(torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)
    assert PixelInput()(torch.rand(2, 6)).shape == (2, 6)  # no images, and nothing to be done to them


def test_resizes_only_other_sizes() -> None:
    pixels = PixelInput(input_size=8)
    assert pixels(torch.rand(1, 3, 5, 6)).shape == (1, 3, 8, 8)
    image = torch.rand(1, 3, 8, 8)
    assert pixels(image) is image


def test_statistics_follow_the_network_and_stay_out_of_its_state_dict() -> None:
    pixels = PixelInput([0.5], [0.5]).double()
    assert pixels(torch.zeros(1, 1, 2, 2, dtype=torch.uint8)).dtype == torch.float64
    assert pixels.state_dict() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [0.5]}, "go together"),
        ({"mean": [0.5], "std": [0.5, 0.5]}, "go together, one value a channel each, got mean="),
        ({"mean": [0.5], "std": [0.0]}, "every std must be > 0"),
        ({"input_size": 0}, "input_size must be one or two numbers >= 1"),
        ({"input_size": (1, 2, 3)}, "input_size must be one or two numbers >= 1"),
    ],
)
def test_refuses_statistics_and_sizes_that_make_no_sense(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelInput(**arguments)


def test_float_images_of_0_to_255_are_found_out_at_the_first_batch() -> None:
    image = torch.randint(256, (2, 3, 4, 4)).float()
    said = r"float images must be in 0..1, got values up to 25\d: divide them by 255, or keep them uint8"
    with pytest.raises(ValueError, match=said):
        PixelInput([0.5], [0.5])(image)
    unchanged = PixelInput()
    with pytest.warns(UserWarning, match=f"{said}; without mean and std they are taken as they come"):
        unchanged(image)
    assert unchanged(image) is image  # once is enough
    for fine in (image / 255, torch.randn(2, 3, 4, 4) * 20, image.to(torch.uint8), torch.rand(2, 6) * 255):
        PixelInput()(fine)


def test_only_the_first_batch_is_read_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(PixelInput, "_check_range", lambda self, image: looked.append(image.dtype))
    pixels = PixelInput([0.5], [0.5])
    for _ in range(3):
        pixels(torch.rand(2, 3, 4, 4))
    assert looked == [torch.float32]
