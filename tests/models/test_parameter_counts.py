"""Every architecture has as many parameters as its published definition, counted here layer by layer."""

import pytest
import torch

from bivallate import models


def conv(entering, leaving, side, bias=False):
    return entering * leaving * side * side + (leaving if bias else 0)


def norm(channels):
    return 2 * channels


def dense(entering, leaving):
    return entering * leaving + leaving


def residual(blocks, classes, channels=3, bottleneck=False, stem=3, widths=(64, 128, 256, 512)):
    """He et al. 2016a: conv-BN, blocks with a shortcut (conv1x1-BN) where the shape changes, linear."""
    total, entering = conv(channels, widths[0], stem) + norm(widths[0]), widths[0]
    for stage, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
        leaving = 4 * width if bottleneck else width
        for block in range(depth):
            if bottleneck:
                total += conv(entering, width, 1) + norm(width) + conv(width, width, 3) + norm(width)
                total += conv(width, leaving, 1) + norm(leaving)
            else:
                total += conv(entering, width, 3) + norm(width) + conv(width, width, 3) + norm(width)
            if entering != leaving or (block == 0 and stage > 0):
                total += conv(entering, leaving, 1) + norm(leaving)
            entering = leaving
    return total + dense(entering, classes)


def preactivated(blocks, classes, channels=3, bottleneck=False, final_bn=True, widths=(64, 128, 256, 512)):
    """He et al. 2016b: BN before each convolution, shortcuts without BN."""
    total, entering = conv(channels, widths[0], 3), widths[0]
    for stage, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
        leaving = 4 * width if bottleneck else width
        for block in range(depth):
            if bottleneck:
                total += norm(entering) + conv(entering, width, 1) + norm(width) + conv(width, width, 3)
                total += norm(width) + conv(width, leaving, 1)
            else:
                total += norm(entering) + conv(entering, width, 3) + norm(width) + conv(width, width, 3)
            if entering != leaving or (block == 0 and stage > 0):
                total += conv(entering, leaving, 1)
            entering = leaving
    return total + (norm(entering) if final_bn else 0) + dense(entering, classes)


def wide(depth, factor, classes, channels=3):
    """Zagoruyko and Komodakis 2016: depth = 6 n + 4."""
    n, remainder = divmod(depth - 4, 6)
    assert remainder == 0
    total, entering = conv(channels, 16, 3), 16
    for width in (int(16 * factor), int(32 * factor), int(64 * factor)):
        for block in range(n):
            total += norm(entering) + conv(entering, width, 3) + norm(width) + conv(width, width, 3)
            total += conv(entering, width, 1) if block == 0 else 0
            entering = width
    return total + norm(entering) + dense(entering, classes)


def small_cnn(classes, channels, side, widths=(64, 128, 196), hidden=256):
    total = 0
    for width in widths:
        total += conv(channels, width, 3, bias=True) + norm(width)
        total += conv(width, width, 3, bias=True) + norm(width)
        channels = width
    return total + dense(widths[-1] * (side // 8) ** 2, hidden) + dense(hidden, classes)


BASIC, DEEP = (2, 2, 2, 2), (3, 4, 6, 3)
TINY_28 = conv(1, 16, 4, True) + conv(16, 32, 4, True) + dense(32 * 7 * 7, 100) + dense(100, 10)
MNIST_28 = conv(1, 32, 3, True) + norm(32) + conv(32, 64, 3, True) + norm(64)
MNIST_28 += dense(64 * 7 * 7, 128) + dense(128, 10)
GREY, COLOUR, LARGE = (1, 28, 28), (3, 32, 32), (3, 224, 224)

# name, classes, shape, options, the sum, and the figure where one is published
TABLE = [
    ("linear", 10, GREY, {}, dense(784, 10), 7_850),
    ("fc1", 10, GREY, {}, dense(784, 1024) + dense(1024, 10), None),
    ("tiny-cnn", 10, GREY, {}, TINY_28, None),
    ("mnist-net", 10, GREY, {}, MNIST_28, None),
    ("small-cnn", 10, COLOUR, {}, small_cnn(10, 3, 32), None),
    ("small-cnn", 10, (1, 8, 8), {}, small_cnn(10, 1, 8), None),
    ("resnet18", 10, COLOUR, {}, residual(BASIC, 10), 11_173_962),
    ("resnet34", 10, COLOUR, {}, residual(DEEP, 10), 21_282_122),
    ("resnet50", 10, COLOUR, {}, residual(DEEP, 10, bottleneck=True), 23_520_842),
    ("resnet18", 1000, LARGE, {"stem": "imagenet"}, residual(BASIC, 1000, stem=7), 11_689_512),
    ("resnet34", 1000, LARGE, {"stem": "imagenet"}, residual(DEEP, 1000, stem=7), 21_797_672),
    ("resnet50", 1000, LARGE, {"stem": "imagenet"}, residual(DEEP, 1000, 3, True, 7), 25_557_032),
    # 11,171,146 is the older public definition; the code of Fast-AT and Fast-BAT adds a BN (1,024 parameters)
    # before the average, and so does ours unless told otherwise.
    ("preact-resnet18", 10, COLOUR, {}, preactivated(BASIC, 10), 11_172_170),
    ("preact-resnet18", 10, COLOUR, {"final_bn": False}, preactivated(BASIC, 10, final_bn=False), 11_171_146),
    ("small-cnn", 10, COLOUR, {"width": 0.25}, small_cnn(10, 3, 32, (16, 32, 49), 64), None),
    ("preact-resnet18", 10, COLOUR, {"width": 0.25}, preactivated(BASIC, 10, widths=(16, 32, 64, 128)), None),
    ("resnet18", 10, COLOUR, {"width": 0.25}, residual(BASIC, 10, widths=(16, 32, 64, 128)), None),
    ("wrn-34-10", 10, COLOUR, {"width": 0.25}, wide(34, 2.5, 10), None),
    ("preact-resnet18-narrow", 10, COLOUR, {}, preactivated(BASIC, 10, widths=(8, 16, 32, 64)), None),
    ("preact-resnet34", 10, COLOUR, {}, preactivated(DEEP, 10), None),
    ("preact-resnet50", 10, COLOUR, {}, preactivated(DEEP, 10, bottleneck=True), None),
    ("wrn-16-8", 10, COLOUR, {}, wide(16, 8, 10), None),
    ("wrn-28-10", 10, COLOUR, {}, wide(28, 10, 10), 36_479_194),
    # Madry's way of counting, 6 n + 2, makes WRN-32-10 what others call WRN-34-10.
    ("wrn-32-10", 10, COLOUR, {}, wide(34, 10, 10), 46_160_474),
    ("wrn-34-10", 10, COLOUR, {}, wide(34, 10, 10), 46_160_474),
    ("wrn-34-10", 100, COLOUR, {}, wide(34, 10, 100), None),
]


@pytest.mark.parametrize(("name", "classes", "shape", "options", "total", "published"), TABLE)
def test_count_equals_the_definition(name, classes, shape, options, total, published):
    with torch.device("meta"):
        model = models.create(name, num_classes=classes, shape=shape, **options)
    assert sum(p.numel() for p in model.parameters()) == total
    assert published in (None, total)


def test_every_architecture_is_in_the_table():
    assert set(models.names()) <= {row[0] for row in TABLE}


def test_normalisation_adds_buffers_and_no_parameters():
    with torch.device("meta"):
        plain = models.create("linear", num_classes=10, shape=GREY)
        normalised = models.create("linear", num_classes=10, shape=GREY, mean=0.1307, std=0.3081)
    assert [p.shape for p in plain.parameters()] == [p.shape for p in normalised.parameters()]
    assert [tuple(b.shape) for b in normalised.buffers()] == [(1, 1, 1, 1)] * 2


def test_describe_counts_for_a_common_shape():
    described = models.describe("wrn-28-10")
    assert described["parameters"] == 36_479_194
    assert described["options"] == {"dropout": 0.0, "zero_head": False, "width": 1.0}
    assert described["summary"].startswith("WRN-28-10")
