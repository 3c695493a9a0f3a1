"""Muon: what it does to kernels, that it leaves the rest to AdamW, and that it learns faster."""

import pytest
import torch
from torch import nn

from trailseg.optimizers import OPTIMIZERS, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16), (1, 9), (3, 1)])
def test_orthogonalising_keeps_directions_and_levels_their_lengths(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64) * 1e-3
    u, lengths, v = torch.linalg.svd(matrix, full_matrices=False)
    (found,) = orthogonalised(matrix[None])
    levelled = u.T @ found @ v.T
    torch.testing.assert_close(levelled, levelled.diag().diag())
    assert lengths.max() < 0.05
    assert 0.6 < levelled.diag().min() <= levelled.diag().max() < 1.3


def test_orthogonalising_nothing_gives_nothing():
    assert not orthogonalised(torch.zeros(1, 3, 4)).any()


def test_matrices_are_orthogonalised_each_by_itself():
    matrices = torch.randn(3, 5, 4) * torch.tensor([1e-3, 1, 1e3])[:, None, None]
    torch.testing.assert_close(orthogonalised(matrices), torch.cat([orthogonalised(one[None]) for one in matrices]))


def network() -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)  # of one shape
    layers = nn.Sequential(first, second, nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))
    return layers.to(memory_format=torch.channels_last)


def backward(layers: nn.Module, seed: int = 0) -> float:
    torch.manual_seed(seed)
    images, target = torch.rand(4, 3, 8, 8), torch.randint(4, (4, 6, 6))
    loss = nn.functional.cross_entropy(layers(images), target)
    loss.backward()
    return loss.item()


def test_two_steps_by_hand():
    layers, lr, decay = network(), 0.01, 0.1
    kernels = [layers[place].weight for place in (0, 1, 2)]
    expected, momenta = [kernel.detach().clone() for kernel in kernels], [torch.zeros_like(k) for k in kernels]
    optimizer = Muon(layers.parameters(), lr=lr, weight_decay=decay)
    for seed in (1, 2):
        optimizer.zero_grad()
        backward(layers, seed)
        for place, kernel in enumerate(kernels):
            gradient = kernel.grad.clone()
            momenta[place] = 0.95 * momenta[place] + 0.05 * gradient
            step = orthogonalised((0.05 * gradient + 0.95 * momenta[place]).reshape(1, -1, 27)).reshape(kernel.shape)
            expected[place] = expected[place] * (1 - lr * decay) - lr * 0.2 * 27**0.5 * step
        optimizer.step()
        for kernel, wanted in zip(kernels, expected, strict=True):
            torch.testing.assert_close(kernel.detach(), wanted)


def test_all_but_kernels_is_left_to_adamw():
    one, two = network(), network()
    backward(one), backward(two)
    for layers, optimizer in ((one, Muon), (two, torch.optim.AdamW)):
        optimizer(layers.parameters(), lr=0.01, weight_decay=0.1).step()
    for (name, mine), its in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, its) == (mine.ndim != 4), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_kernel_without_a_gradient_stays(name):
    layers = network()
    layers[0].requires_grad_(False)
    frozen, free = layers[0].weight.clone(), layers[1].weight.clone()
    backward(layers)
    OPTIMIZERS[name](layers.parameters(), lr=0.01, weight_decay=0.1).step()
    assert torch.equal(layers[0].weight, frozen)
    assert not torch.equal(layers[1].weight, free)


def test_its_steps_are_as_long_as_those_of_adamw():
    lengths = []
    for make in OPTIMIZERS.values():
        layers = network()
        optimizer, before = make(layers.parameters(), lr=0.001, weight_decay=0.0), layers[2].weight.clone()
        for seed in range(20):
            optimizer.zero_grad()
            backward(layers, seed)
            optimizer.step()
        lengths.append((layers[2].weight - before).norm().item())
    assert 0.3 < lengths[0] / lengths[1] < 3
