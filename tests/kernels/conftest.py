"""One thread and one seed for every kernel test: the sizes are small, and the numbers then do not depend on the machine."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
