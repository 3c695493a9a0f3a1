"""Shared by all tests: one thread, so that times and bits do not depend on what else the machine does."""

import torch

torch.set_num_threads(1)
