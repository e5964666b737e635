"""Networks whose weights are NaN or infinite."""

from itertools import chain

from torch import nn


def not_finite(network: nn.Module) -> str | None:
    """Return the name of the first parameter with NaN or infinity in it, or buffer with NaN, or None.

    A buffer may hold infinities on purpose, as an attention mask does. This waits for the device.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> not_finite(layer) is None
        True
        >>> layer.bias.data[0] = float("nan")
        >>> not_finite(layer)
        'bias'
    """
    parameters = ((name, parameter.isfinite().all()) for name, parameter in network.named_parameters())
    buffers = ((name, ~buffer.isnan().any()) for name, buffer in network.named_buffers())
    return next((name for name, fine in chain(parameters, buffers) if not fine), None)


def refuse_not_finite(network: nn.Module) -> None:
    """Refuse a student with weights that are not finite: it answers with NaN, which ``argmax`` takes for class 0.

    Raises:
        ValueError: If a weight is NaN or infinite.
    """
    name = not_finite(network)
    if name is not None:
        raise ValueError(
            f"the student's weights are not finite ({name}): its run has diverged; take an earlier checkpoint"
        )
