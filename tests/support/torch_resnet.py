"""ResNets in NumPy, on arrays by torchvision's and IBN-Net's names in PyTorch's layout."""

import numpy as np

STRIDES = (1, 2, 2, 1)  # STAR keeps the resolution in the last stage


def state_dict(block, stage_sizes, width, *, ibn):
    """Returns random arrays of a network whose first convolution has `width` channels."""
    rng = np.random.default_rng(0)
    arrays = {"fc.weight": np.zeros((1000, 8)), "fc.bias": np.zeros(1000)}

    def convolution(name, features, channels, size):
        scale = (channels * size * size) ** -0.5
        arrays[f"{name}.weight"] = scale * rng.normal(size=(features, channels, size, size))

    def affine(name, channels):
        arrays[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels)
        arrays[f"{name}.bias"] = 0.3 * rng.normal(size=channels)

    def batch_norm(name, channels):
        affine(name, channels)
        arrays[f"{name}.running_mean"] = 0.3 * rng.normal(size=channels)
        arrays[f"{name}.running_var"] = rng.uniform(0.5, 1.5, channels)
        arrays[f"{name}.num_batches_tracked"] = np.array(7)

    convolution("conv1", width, 3, 7)
    batch_norm("bn1", width)
    channels = width
    for stage, num_blocks in enumerate(stage_sizes, start=1):
        narrow = width * 2 ** (stage - 1)
        out = narrow * (4 if block == "bottleneck" else 1)
        for i in range(num_blocks):
            name = f"layer{stage}.{i}"
            if block == "bottleneck":
                layers = [(narrow, channels, 1), (narrow, narrow, 3), (out, narrow, 1)]
            else:
                layers = [(narrow, channels, 3), (narrow, narrow, 3)]
            for number, layer in enumerate(layers, start=1):
                convolution(f"{name}.conv{number}", *layer)
                if ibn and number == 1 and stage < 4:
                    affine(f"{name}.bn1.IN", narrow // 2)
                    batch_norm(f"{name}.bn1.BN", narrow - narrow // 2)
                else:
                    batch_norm(f"{name}.bn{number}", layer[0])
            if i == 0 and (stage > 1 or channels != out):
                convolution(f"{name}.downsample.0", out, channels, 1)
                batch_norm(f"{name}.downsample.1", out)
            channels = out
    return arrays


def convolve(x, weight, stride):
    """Convolves x: [C, H, W] with weight: [out, C, size, size]."""
    size = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], weight)


def normalize(x, mean, variance, arrays, name):
    column = lambda y: np.reshape(y, (-1, 1, 1))  # noqa: E731
    normalized = (x - column(mean)) / np.sqrt(column(variance) + 1e-5)
    return normalized * column(arrays[f"{name}.weight"]) + column(arrays[f"{name}.bias"])


def norm(x, arrays, name):
    """Computes batch norm or IBN at inference."""
    if f"{name}.IN.weight" not in arrays:
        mean, variance = arrays[f"{name}.running_mean"], arrays[f"{name}.running_var"]
        return normalize(x, mean, variance, arrays, name)
    half = len(arrays[f"{name}.IN.weight"])
    instance, batch = x[:half], x[half:]
    mean, variance = instance.mean((1, 2)), instance.var((1, 2))
    instance = normalize(instance, mean, variance, arrays, f"{name}.IN")
    return np.concatenate([instance, norm(batch, arrays, f"{name}.BN")])


def features(arrays, frame):
    """Computes the mean over the last map of one frame, [H, W, 3]."""
    return last_map(arrays, frame).mean((1, 2))


def last_map(arrays, frame):
    """Computes the last map, [C, h, w], of one frame, [H, W, 3]."""
    x = convolve(frame.transpose(2, 0, 1).astype(float), arrays["conv1.weight"], 2)
    x = np.maximum(norm(x, arrays, "bn1"), 0)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))  # nothing is below zero
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    x = windows[:, ::2, ::2].max((3, 4))
    for stage, stage_stride in enumerate(STRIDES, start=1):
        i = 0
        while f"layer{stage}.{i}.conv1.weight" in arrays:
            name, y, stride = f"layer{stage}.{i}", x, stage_stride if i == 0 else 1
            bottleneck = f"{name}.conv3.weight" in arrays
            last = 3 if bottleneck else 2
            for number in range(1, last + 1):
                strided = number == (2 if bottleneck else 1)
                weight = arrays[f"{name}.conv{number}.weight"]
                y = norm(
                    convolve(y, weight, stride if strided else 1), arrays, f"{name}.bn{number}"
                )
                y = np.maximum(y, 0) if number < last else y
            if f"{name}.downsample.0.weight" in arrays:
                x = convolve(x, arrays[f"{name}.downsample.0.weight"], stride)
                x = norm(x, arrays, f"{name}.downsample.1")
            x = np.maximum(x + y, 0)
            i += 1
    return x
