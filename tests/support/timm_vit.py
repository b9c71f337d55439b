"""A small Vision Transformer in NumPy, on arrays by timm's names in PyTorch's layout."""

import math

import numpy as np

WIDTH, DEPTH, NUM_HEADS, PATCH_SIZE, POS_GRID = 12, 2, 3, 8, (3, 2)


def state_dict():
    """Returns random arrays of the network, including its classifier."""
    rng = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + POS_GRID[0] * POS_GRID[1], WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH_SIZE, PATCH_SIZE),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "pre_logits.fc.weight": (WIDTH, WIDTH),
        "pre_logits.fc.bias": (WIDTH,),
        "head.weight": (1000, WIDTH),
        "head.bias": (1000,),
    }
    layers = {
        "norm1": (WIDTH,),
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "norm2": (WIDTH,),
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
    }
    for i in range(DEPTH):
        for layer, shape in layers.items():
            shapes[f"blocks.{i}.{layer}.weight"] = shape
            shapes[f"blocks.{i}.{layer}.bias"] = shape[:1]
    arrays = {name: 0.5 * rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    # The tokens are so small that the first layer norm's epsilon matters.
    small = ("cls_token", "pos_embed", "patch_embed")
    return {name: 1e-3 * x if name.startswith(small) else x for name, x in arrays.items()}


def linear(arrays, name, x):
    return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]


def layer_norm(arrays, name, x):
    normalized = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return normalized * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]


def attention(arrays, name, x):
    """Computes self-attention over tokens x: [L, C]."""
    query, key, value = np.split(linear(arrays, f"{name}.qkv", x), 3, axis=-1)
    size, heads = WIDTH // NUM_HEADS, []
    for head in range(NUM_HEADS):
        part = np.s_[:, head * size : (head + 1) * size]
        powers = np.exp(query[part] @ key[part].T / math.sqrt(size))
        heads.append(powers / powers.sum(1, keepdims=True) @ value[part])
    return linear(arrays, f"{name}.proj", np.concatenate(heads, axis=-1))


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def keys_cubic(distance):
    """Computes the cubic convolution kernel (Keys 1981) with a = -1/2."""
    d = abs(distance)
    if d <= 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


def resizing(length, new_length):
    """Returns the weights of the old samples in each new one, float[new_length, length].

    Samples are at the centers of their cells; the kernel is widened for downsampling.
    """
    step = length / new_length
    weights = np.array(
        [
            [keys_cubic(((i + 0.5) * step - (j + 0.5)) / max(step, 1)) for j in range(length)]
            for i in range(new_length)
        ]
    )
    return weights / weights.sum(1, keepdims=True)


def class_token(arrays, frame):
    """Computes the normalized class token of one frame, [H, W, 3]."""
    return tokens_of(arrays, frame)[0]


def tokens_of(arrays, frame):
    """Computes all normalized tokens of one frame, the class token first, then row by row."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    rows, columns = (math.ceil(length / PATCH_SIZE) for length in frame.shape[:2])
    padded = np.zeros((rows * PATCH_SIZE, columns * PATCH_SIZE, 3))
    padded[: frame.shape[0], : frame.shape[1]] = frame
    position = arrays["pos_embed"][0]
    grid = position[1:].reshape(*POS_GRID, WIDTH)
    by_row, by_column = resizing(POS_GRID[0], rows), resizing(POS_GRID[1], columns)
    grid = np.einsum("ri,cj,ijd->rcd", by_row, by_column, grid)

    tokens = [arrays["cls_token"][0, 0] + position[0]]
    for row in range(rows):
        for column in range(columns):
            top, left = row * PATCH_SIZE, column * PATCH_SIZE
            patch = padded[top : top + PATCH_SIZE, left : left + PATCH_SIZE]
            token = np.einsum("hwi,oihw->o", patch, arrays["patch_embed.proj.weight"])
            tokens.append(token + arrays["patch_embed.proj.bias"] + grid[row, column])
    x = np.array(tokens)
    for i in range(DEPTH):
        name = f"blocks.{i}"
        x = x + attention(arrays, f"{name}.attn", layer_norm(arrays, f"{name}.norm1", x))
        y = gelu(linear(arrays, f"{name}.mlp.fc1", layer_norm(arrays, f"{name}.norm2", x)))
        x = x + linear(arrays, f"{name}.mlp.fc2", y)
    return layer_norm(arrays, "norm", x)
