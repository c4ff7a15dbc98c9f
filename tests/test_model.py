"""c-ResUnet: its size, its parts, and what goes in and comes out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cellray.model import CResUnet, build_model


def hand_count(n: int, channels: int) -> int:
    """Parameters of c-ResUnet, counted from its description."""

    def conv(a: int, b: int, kernel: int) -> int:
        return a * b * kernel**2 + b

    def block(a: int, b: int, kernel: int = 3) -> int:  # BN, ELU, conv, twice; a BN has a scale and a shift
        return 2 * a + conv(a, b, kernel) + 2 * b + conv(b, b, kernel)

    def residual(a: int, b: int, kernel: int = 3) -> int:
        return block(a, b, kernel) + (conv(a, b, 1) if a != b else 0)

    def up(a: int, b: int) -> int:  # 2x2 transposed convolution, then a block on it and the skip
        return conv(a, b, 2) + block(2 * b, b)

    encoder = block(1, n) + residual(n, 2 * n) + residual(2 * n, 4 * n)
    bottleneck = residual(4 * n, 8 * n, 5) + residual(8 * n, 8 * n, 5)
    decoder = up(8 * n, 4 * n) + up(4 * n, 2 * n) + up(2 * n, n)
    return conv(channels, 1, 1) + encoder + bottleneck + decoder + conv(n, 1, 1)


@pytest.mark.parametrize(("n", "channels"), [(16, 3), (16, 1), (8, 1), (3, 3)])
def test_it_has_as_many_parameters_as_counted_by_hand(n, channels):
    model = CResUnet(n, channels)
    assert sum(p.numel() for p in model.parameters()) == hand_count(n, channels)


def test_it_has_the_1_71_million_parameters_of_the_paper():
    assert hand_count(16, 3) == 1_707_287


def test_kernels_are_5x5_in_the_bottleneck_and_3x3_elsewhere():
    model = CResUnet(4)
    deep = {m.kernel_size for m in model.bottleneck.modules() if isinstance(m, nn.Conv2d)}
    rest = {
        m.kernel_size
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and not name.startswith("bottleneck")
    }
    assert deep == {(5, 5), (1, 1)}  # 1x1: the shortcut where the width changes
    assert rest == {(3, 3), (1, 1)}


def test_batch_norm_has_the_settings_of_the_original():
    norms = [m for m in CResUnet(2).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2 * 8  # two in each of eight blocks
    assert {(m.momentum, m.eps) for m in norms} == {(0.01, 1e-3)}


def test_it_starts_from_kaiming_weights_without_bias():
    torch.manual_seed(0)
    model = CResUnet(16)
    kernel = model.bottleneck[1].block[2].weight
    assert kernel.std().item() == pytest.approx((2 / (128 * 25)) ** 0.5, rel=0.02)
    assert all((m.bias == 0).all() for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (24, 8), (64, 56)])
def test_any_multiple_of_8_keeps_its_size(height, width):
    with torch.inference_mode():
        assert CResUnet(2, 1).eval()(torch.rand(2, 1, height, width)).shape == (2, 1, height, width)


def test_it_returns_logits():
    model = build_model("c_resunet", base_features=2, in_channels=3)
    assert not any(isinstance(m, nn.Sigmoid | nn.Softmax | nn.LogSigmoid) for m in model.modules())
    last = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    nn.init.constant_(last.bias, -30.0)
    images = torch.rand(2, 3, 16, 16)
    model.train()
    low = model(images)
    nn.init.constant_(last.bias, 30.0)
    high = model(images)
    # What is added to the last layer comes out as it is: nothing bends it.
    assert low.max() < -5
    torch.testing.assert_close(high - low, torch.full_like(low, 60.0), rtol=1e-4, atol=1e-3)


def test_every_parameter_is_trained():
    torch.manual_seed(0)
    model = CResUnet(2)
    model(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_same_seed_gives_the_same_weights():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build_model("c_resunet", base_features=2, in_channels=1)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_upsampling_is_a_transposed_convolution(order):
    torch.manual_seed(0)
    ours, torchs = CResUnet(4).decoder2.up, nn.ConvTranspose2d(16, 8, 2, stride=2)
    nn.init.normal_(ours.bias)
    torchs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 16, 6, 10).to(memory_format=order)
    weights = torch.randn(2, 8, 12, 20)
    found = []
    for layer in (ours, torchs):
        x = images.clone().requires_grad_()
        y = layer(x)
        found.append([y, *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_the_gradient_of_a_decoders_sum_and_skip_is_that_of_a_concatenation_and_lies_in_one_piece(order):
    torch.manual_seed(0)
    block = CResUnet(4).decoder2
    x, skip = (
        torch.randn(2, channels, pixels, pixels).to(memory_format=order).requires_grad_()
        for channels, pixels in ((16, 6), (8, 12))
    )
    weights = torch.randn(2, 8, 12, 12)
    plain = block.up(x)
    plain = block.block(torch.cat([plain, skip], dim=1)) + plain
    expected = torch.autograd.grad((plain * weights).sum(), [x, skip, *block.parameters()])
    seen = []
    skip.register_hook(seen.append)
    found = torch.autograd.grad((block(x, skip) * weights).sum(), [x, skip, *block.parameters()])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert seen[0].is_contiguous(memory_format=order)
