"""Networks whose weights are on disk while nobody needs them."""

from pathlib import Path
import tempfile
from typing import IO

import torch
from torch import Tensor, nn


class PutAway:
    """Keep the weights of a network in a nameless file, so that they take no memory, until `take_back`.

    The file goes with this process, whatever ends it. Weights in other forms than parameters and buffers stay.

    Args:
        network: Its parameters and buffers become empty.
        folder: Where the file is, on a disk with room for the weights.

    Raises:
        OSError: If there is no room; the network is then as it was.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> weight = network.weight.clone()
        >>> away = PutAway(network, Path())
        >>> network.weight.numel()
        0
        >>> away.take_back()
        >>> bool((network.weight == weight).all())
        True
    """

    def __init__(self, network: nn.Module, folder: Path) -> None:
        self._tensors = [part for part in (*network.parameters(), *network.buffers()) if part.numel()]
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # open for as long as this is
        try:
            torch.save([part.detach() for part in self._tensors], self._file)
            self._file.flush()
        except Exception as error:  # torch raises RuntimeError for a full disk
            self._file.close()
            raise OSError(f"the weights were not written to {folder}: {error}") from error
        for part in self._tensors:
            part.data = part.data.new_empty(0)

    def take_back(self) -> None:
        """Read the weights back, to where the network is now."""
        self._file.seek(0)
        weights: list[Tensor] = torch.load(self._file, map_location="cpu", weights_only=True)
        for part, weight in zip(self._tensors, weights, strict=True):
            part.data = weight.to(part.device, part.dtype)
        self._file.close()
