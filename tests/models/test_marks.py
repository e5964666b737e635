import time

import pytest
import torch

from lit_distill.models.marks import Mark


def test_their_difference_is_seconds() -> None:
    first = Mark(torch.device("cpu"))
    time.sleep(0.02)
    assert 0.02 <= Mark(torch.device("cpu")) - first < 2


@pytest.mark.gpu
def test_on_a_gpu_they_are_of_its_own_work() -> None:
    device = torch.device("cuda")
    matrix = torch.rand(4096, 4096, device=device)
    torch.cuda.synchronize()
    began, first = time.perf_counter(), Mark(device)
    for _ in range(20):
        matrix @ matrix
    last, asked = Mark(device), time.perf_counter() - began
    assert last - first > asked
