"""Shared by all tests: a cache of their own, and one thread, so that bits do not depend on what else is running."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_apart(tmp_path_factory):
    """Decoded pictures go where they are of no use to the user of this machine, nor theirs to the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
