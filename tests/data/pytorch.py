#!/usr/bin/env python3
"""Writes pytorch.safetensors.gz: what PyTorch computes in double precision, with gradients by its autograd.

    python3 tests/data/pytorch.py        # made with torch 2.15.0

Metadata hold a line of options for each case, tensors are named case/tensor. What PyTorch lacks (a reset before the
product, peepholes, a clipped cell, a soft cap, ALiBi) is spelled out in its elementary operations, from the papers.
"""

import gzip
import json
import pathlib
import struct

import numpy as np
import torch
import torch.nn.functional as F

numbers = np.random.default_rng(7)
cases, tensors = {}, {}


def random(*shape, by=1.0):
    # Few digits, so that what goes in is exact everywhere.
    return torch.tensor(np.round(numbers.uniform(-by, by, shape) * 256) / 256)


def leaf(tensor):
    return None if tensor is None else tensor.clone().requires_grad_()


def case(name, operation, options, inputs, outputs, plain=()):
    """Keeps a case: the inputs that are leaves with their gradients, the outputs with the gradients that they were given."""
    assert name not in cases, name
    cases[name] = " ".join([operation, *(f"{key}={value}" for key, value in options.items())])
    outputs = {key: value for key, value in outputs.items() if value is not None}
    given = {key: random(*value.shape) for key, value in outputs.items() if value.requires_grad}
    if given:
        torch.autograd.backward([outputs[key] for key in given], list(given.values()))
    for key, value in {**inputs, **outputs, **dict(plain)}.items():
        if value is not None:
            tensors[f"{name}/{key}"] = value.detach()
    for key, value in given.items():
        tensors[f"{name}/d_{key}"] = value
    for key, value in inputs.items():
        if value is not None and value.requires_grad:
            tensors[f"{name}/d_{key}"] = value.grad


def sizes(values):
    return ",".join(map(str, values))


# Convolution.


def convolution(name, image, channels, kernel, stride=1, dilation=1, padding=((0, 0),), groups=1, bias=True, batch=2):
    axes = len(image)
    every = lambda value: list(value) if isinstance(value, (tuple, list)) else [value] * axes
    stride, dilation, kernel = every(stride), every(dilation), every(kernel)
    sides = [*padding] * axes if len(padding) == 1 else [*padding]
    x = leaf(random(batch, channels[0], *image))
    w = leaf(random(channels[1], channels[0] // groups, *kernel))
    b = leaf(random(channels[1])) if bias else None
    padded = F.pad(x, [side for pair in reversed(sides) for side in pair])
    y = [F.conv1d, F.conv2d, F.conv3d][axes - 1](padded, w, b, stride, 0, dilation, groups)
    options = dict(stride=sizes(stride), dilation=sizes(dilation), groups=groups)
    options["padding"] = sizes(side for pair in sides for side in pair)
    case(f"conv {name}", "conv", options, dict(x=x, w=w, b=b), dict(y=y))


convolution("1d", [11], [3, 4], 3)
convolution("1d strided, dilated", [17], [2, 5], 3, 2, 3, [(2, 1)])
convolution("2d", [6, 7], [3, 4], [3, 2])
convolution("2d pointwise", [5, 4], [17, 9], 1)
convolution("2d pointwise strided", [5, 6], [5, 3], 1, 2, bias=False)
convolution("2d 3 by 3", [9, 10], [8, 17], 3, padding=[(1, 1)])
convolution("2d asymmetric", [7, 6], [3, 5], [3, 4], [2, 3], 1, [(1, 2), (3, 0)])
convolution("2d dilated", [9, 8], [4, 3], 3, 1, [2, 3], [(2, 2), (3, 3)])
convolution("2d dilated, strided", [11, 9], [3, 3], [3, 2], [3, 2], [2, 3], [(1, 0), (0, 2)])
convolution("2d groups", [6, 6], [6, 9], 3, 1, 1, [(1, 1)], groups=3)
convolution("2d groups strided", [8, 7], [8, 4], [2, 3], 2, 1, [(0, 1)], groups=2, bias=False)
convolution("2d depthwise", [7, 8], [9, 9], 3, 1, 1, [(1, 1)], groups=9)
convolution("2d depthwise strided", [9, 9], [5, 5], 5, 2, 1, [(2, 2)], groups=5)
convolution("2d depthwise multiplied", [6, 7], [4, 8], 3, 1, 2, [(2, 2)], groups=4)
convolution("2d first layer", [15, 15], [3, 8], 7, 2, 1, [(3, 3)], batch=1)
convolution("2d kernel beyond the image", [3, 2], [2, 3], [5, 4], 1, 1, [(2, 2), (2, 2)])
convolution("3d", [4, 5, 4], [2, 3], [2, 3, 2], 1, 1, [(1, 0), (1, 1), (0, 1)])
convolution("3d strided, dilated", [6, 5, 7], [2, 2], 2, [2, 1, 3], [1, 2, 2])
convolution("3d groups", [4, 4, 4], [4, 6], 2, groups=2)


def transposed(name, image, channels, kernel, stride=1, dilation=1, padding=0, more=0, groups=1, bias=True, cut=None):
    axes = len(image)
    every = lambda value: list(value) if isinstance(value, (tuple, list)) else [value] * axes
    stride, dilation, kernel, padding, more = map(every, (stride, dilation, kernel, padding, more))
    x = leaf(random(2, channels[0], *image))
    w = leaf(random(channels[0], channels[1] // groups, *kernel))
    b = leaf(random(channels[1])) if bias else None
    function = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][axes - 1]
    y = function(x, w, b, stride, padding, more, groups, dilation)
    sides = [[side, side] for side in padding]
    if cut:
        # Sides that differ: what is more is cut off behind.
        sides = [[before, behind + last] for (before, behind), last in zip(sides, cut)]
        y = y[(..., *(slice(0, y.shape[2 + axis] - last) for axis, last in enumerate(cut)))]
    options = dict(stride=sizes(stride), dilation=sizes(dilation), groups=groups, more=sizes(more))
    options["padding"] = sizes(side for pair in sides for side in pair)
    case(f"transposed {name}", "transposed", options, dict(x=x, w=w, b=b), dict(y=y))


transposed("1d", [5], [3, 2], 3, 2, padding=1, more=1)
transposed("2d", [4, 3], [3, 5], [3, 2])
transposed("2d strided", [4, 5], [4, 3], 3, [2, 3], 1, 1, [1, 2])
transposed("2d dilated", [3, 4], [2, 3], [2, 3], 2, [3, 2], 1)
transposed("2d groups", [4, 4], [4, 6], 3, 2, 1, 1, 1, groups=2, bias=False)
transposed("2d depthwise", [5, 4], [6, 6], 4, 2, 1, 1, groups=6)
transposed("2d asymmetric", [4, 4], [3, 2], 3, 2, padding=[0, 1], cut=[1, 2])
transposed("2d stride beyond the kernel", [3, 3], [2, 3], 2, 4, more=2)
transposed("3d", [3, 2, 3], [2, 3], 2, [1, 2, 2], padding=[0, 1, 0])

# Pooling.


def pooling(name, kind, image, kernel, stride, padding=0, dilation=1, ceil=False, **options):
    axes = len(image)
    every = lambda value: list(value) if isinstance(value, (tuple, list)) else [value] * axes
    kernel, stride, padding, dilation = map(every, (kernel, stride, padding, dilation))
    # Different numbers, so that the maximum is one.
    count = 2 * 3 * int(np.prod(image))
    x = leaf(torch.tensor(numbers.permutation(count).reshape(2, 3, *image) / count * 4 - 2))
    indices = None
    if kind == "max":
        function = [F.max_pool1d, F.max_pool2d, F.max_pool3d][axes - 1]
        y, indices = function(x, kernel, stride, padding, dilation, ceil, True)
    elif kind == "average":
        function = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][axes - 1]
        y = function(x, kernel, stride, padding, ceil, options["include"])
    else:
        single = axes == 1  # which takes no lists
        function = [F.lp_pool1d, F.lp_pool2d, F.lp_pool3d][axes - 1]
        y = function(x, options["p"], kernel[0] if single else kernel, stride[0] if single else stride, ceil)
    every = dict(kernel=sizes(kernel), stride=sizes(stride), padding=sizes(padding), dilation=sizes(dilation))
    plain = {} if indices is None else dict(indices=indices.double())
    options = {**every, "ceil": int(ceil), **{key: int(value) for key, value in options.items()}}
    case(f"{kind} {name}", kind, options, dict(x=x), dict(y=y), plain)


def adaptive(kind, image, outputs):
    axes = len(image)
    count = 2 * 3 * int(np.prod(image))
    x = leaf(torch.tensor(numbers.permutation(count).reshape(2, 3, *image) / count * 4 - 2))
    options, plain = dict(outputs=sizes(outputs)), {}
    if kind == "max":
        function = [F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d][axes - 1]
        y, indices = function(x, outputs, True)
        plain = dict(indices=indices.double())
    else:
        y = [F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d][axes - 1](x, outputs)
    case(f"{kind} adaptive {sizes(image)}", kind, options, dict(x=x), dict(y=y), plain)


pooling("1d", "max", [9], 3, 2, 1)
pooling("2d", "max", [7, 8], [3, 2], [2, 3], [1, 0])
pooling("2d overlapping", "max", [6, 6], 3, 1, 1)
pooling("2d dilated", "max", [9, 8], [2, 3], 2, 1, [3, 2])
pooling("2d ceil", "max", [8, 7], 3, 2, 1, ceil=True)
pooling("3d", "max", [5, 4, 6], 2, [2, 1, 2], 1, ceil=True)
for include in [False, True]:
    pooling(f"1d {include}", "average", [9], 3, 2, 1, include=include)
    pooling(f"2d {include}", "average", [7, 8], [3, 2], [2, 3], [1, 1], include=include)
    pooling(f"2d ceil {include}", "average", [8, 7], 3, 2, 1, ceil=True, include=include)
    pooling(f"3d {include}", "average", [5, 4, 6], 2, 2, 1, ceil=True, include=include)
# PyTorch's odd powers are those of the numbers, not of their absolute values.
pooling("1d", "lp", [9], 3, 1, p=4)
pooling("2d", "lp", [6, 7], [3, 2], 2, p=2)
pooling("3d", "lp", [4, 5, 4], 2, 2, p=2)
for kind in ["max", "average"]:
    adaptive(kind, [10], [4])
    adaptive(kind, [7, 5], [3, 5])
    adaptive(kind, [6, 9], [1, 1])
    adaptive(kind, [4, 5, 6], [2, 3, 4])

# Attention.


def attention(name, heads, queries, keys, dim, value_dim=None, bias=None, mask=False, causal=None, scale=None, cap=None,
              slopes=False, window=None, lengths=None, fused=False):
    batch, (heads, kv_heads) = 2, heads
    q = leaf(random(batch, heads, queries, dim, by=2))
    k = leaf(random(batch, kv_heads, keys, dim, by=2))
    v = leaf(random(batch, kv_heads, keys, value_dim or dim))
    bias = leaf(random(*bias)) if bias else None
    seen = torch.tensor(numbers.uniform(size=(batch, 1, queries, keys)) < 0.6) if mask else None
    if mask:
        seen[0, 0, 1] = False  # A query that sees nothing.
    slopes = random(heads).abs() if slopes else None
    factor = dim**-0.5 if scale is None else scale
    if fused:
        y = F.scaled_dot_product_attention(
            q, k, v, seen if mask else bias, is_causal=causal == "start", scale=scale, enable_gqa=heads != kv_heads
        )
    else:
        wide = [t.repeat_interleave(heads // kv_heads, 1) for t in (k, v)]
        scores = q @ wide[0].transpose(2, 3) * factor
        if cap:
            scores = cap * torch.tanh(scores / cap)
        ends = torch.tensor(lengths or [keys] * batch)
        first = (ends - queries if causal == "end" else ends * 0).view(-1, 1, 1, 1)
        at = first + torch.arange(queries).view(1, 1, -1, 1)
        key = torch.arange(keys).view(1, 1, 1, -1)
        if slopes is not None:
            scores = scores - slopes.view(1, -1, 1, 1) * (at - key).abs()
        if bias is not None:
            scores = scores + bias
        hidden = key >= ends.view(-1, 1, 1, 1)
        if causal:
            hidden = hidden | (key > at)
        if window:
            hidden = hidden | ((key - at).abs() >= window)
        if mask:
            hidden = hidden | ~seen
        hidden = hidden.broadcast_to(scores.shape)
        weights = torch.where(hidden, 0, torch.softmax(scores.masked_fill(hidden, -1e300), 3))
        y = weights @ wide[1]
    options = dict(causal=causal, scale=scale, cap=cap, window=window, lengths=lengths and sizes(lengths))
    options = {key: value for key, value in options.items() if value is not None}
    plain = dict(mask=None if seen is None else seen.double(), slopes=slopes)
    case(f"attention {name}", "attention", options, dict(q=q, k=k, v=v, bias=bias), dict(y=y), plain)


attention("plain", [2, 2], 5, 7, 4, fused=True)
attention("values of another size", [2, 2], 5, 7, 4, 3, fused=True)
attention("long", [1, 1], 19, 40, 8, fused=True)
attention("scale", [2, 2], 3, 6, 5, scale=0.25, fused=True)
attention("bias", [2, 2], 5, 6, 4, bias=[2, 2, 5, 6], fused=True)
attention("bias broadcast", [2, 2], 5, 6, 4, bias=[1, 2, 1, 6], fused=True)
attention("mask", [2, 2], 5, 6, 4, mask=True, fused=True)
attention("causal", [2, 2], 6, 6, 4, causal="start", fused=True)
attention("causal, more keys", [2, 2], 4, 7, 4, causal="start", fused=True)
attention("grouped", [6, 2], 5, 7, 4, fused=True)
attention("one head of keys", [4, 1], 5, 7, 4, causal="start", fused=True)
attention("causal at the end", [2, 2], 3, 8, 4, causal="end")
attention("cap", [2, 2], 5, 7, 4, cap=1.5)
attention("alibi", [4, 4], 6, 6, 4, causal="start", slopes=True)
attention("window", [2, 2], 9, 9, 4, causal="start", window=3)
attention("lengths", [2, 2], 5, 7, 4, lengths=[7, 3])
attention("everything", [4, 2], 6, 9, 5, 3, bias=[2, 1, 6, 9], mask=True, causal="end", scale=0.3, cap=2.0, slopes=True,
          window=6, lengths=[9, 7])

# Normalisation.


def normalisation(name, kind, shape, epsilon=1e-5, groups=None, affine=True):
    x = leaf(random(*shape, by=2) + 0.5)
    count = shape[-1] if kind in ["layer", "rms"] else shape[1]
    scale = leaf(random(count) + 1) if affine else None
    shift = leaf(random(count)) if affine and kind != "rms" else None
    outputs, options = {}, dict(epsilon=epsilon)
    inputs, plain = dict(x=x, scale=scale, shift=shift), {}
    if kind == "layer":
        y = F.layer_norm(x, shape[-1:], scale, shift, epsilon)
    elif kind == "rms":
        y = F.rms_norm(x, shape[-1:], scale, epsilon)
    elif kind == "group":
        y = F.group_norm(x, groups, scale, shift, epsilon)
        options["groups"] = groups
    elif kind == "instance":
        y = F.instance_norm(x, weight=scale, bias=shift, eps=epsilon)
    else:
        mean, variance = random(count), random(count).abs() + 0.5
        plain = dict(mean=mean.clone(), variance=variance.clone())
        y = F.batch_norm(x, mean, variance, scale, shift, kind == "batch", 0.25, epsilon)
        plain.update(new_mean=mean, new_variance=variance)
    case(f"{kind} {name}", kind, options, inputs, dict(y=y), plain)


normalisation("rows", "layer", [5, 17])
normalisation("rank 3", "layer", [2, 3, 8], 1e-2)
normalisation("plain", "layer", [4, 33], affine=False)
normalisation("rows", "rms", [5, 17])
normalisation("rank 3", "rms", [2, 3, 8], 1e-2)
normalisation("plain", "rms", [4, 33], affine=False)
for kind in ["batch", "constant", "instance"]:
    normalisation("1d", kind, [3, 4, 9])
    normalisation("2d", kind, [2, 5, 4, 5], 1e-2)
    normalisation("3d", kind, [2, 3, 2, 3, 4])
    normalisation("plain", kind, [3, 2, 7], affine=False)
normalisation("no positions", "batch", [9, 6])
normalisation("2d", "group", [2, 6, 4, 5], groups=3)
normalisation("one", "group", [3, 4, 7], groups=1)
normalisation("plain", "group", [2, 8, 3], 1e-2, groups=4, affine=False)

# Activations.

points = torch.cat([torch.arange(-96, 97) / 16 + 1 / 64, torch.tensor([-800.0, -90, -30, -12, 12, 30, 90, 800])]).double()
functions = dict(
    relu=F.relu, leaky_relu=lambda x: F.leaky_relu(x, 0.125), elu=lambda x: F.elu(x, 1.5), selu=F.selu,
    celu=lambda x: F.celu(x, 1.5), gelu=F.gelu, gelu_tanh=lambda x: F.gelu(x, approximate="tanh"), silu=F.silu,
    mish=F.mish, sigmoid=torch.sigmoid, tanh=torch.tanh, softplus=F.softplus, softsign=F.softsign,
    # The derivative of its own has a 1/6 in single precision.
    hard_sigmoid=lambda x: torch.clamp(x / 6 + 0.5, 0, 1), hard_swish=F.hardswish, threshold=lambda x: F.threshold(x, 1.0, 0.0),
)
for name, function in functions.items():
    x = leaf(points)
    case(f"activation {name}", "activation", {}, dict(x=x), dict(y=function(x)))
for name, shape in dict(shared=[1, 1, 1], channels=[1, 5, 1]).items():
    x, slope = leaf(random(3, 5, 7)), leaf(random(*shape))
    case(f"prelu {name}", "prelu", {}, dict(x=x, slope=slope), dict(y=F.prelu(x, slope.reshape(-1))))

# Softmax and losses.

for axis in [0, 1, 2]:
    for name, function in dict(softmax=torch.softmax, log_softmax=torch.log_softmax).items():
        x = leaf(random(4, 5, 6, by=4))
        case(f"{name} {axis}", name, dict(axis=axis), dict(x=x), dict(y=function(x, axis)))
for reduction in ["mean", "sum", "none"]:
    for weighted in [False, True]:
        for smoothing in [0.0, 0.1]:
            x, classes = leaf(random(9, 6, by=4)), torch.tensor(numbers.integers(0, 6, 9))
            classes[4] = 2
            weights = random(6).abs() if weighted else None
            y = F.cross_entropy(x, classes, weights, ignore_index=2, reduction=reduction, label_smoothing=smoothing)
            options = dict(reduction=reduction, smoothing=smoothing, ignored=2)
            name = f"cross_entropy {reduction} {weighted} {smoothing}"
            case(name, "cross_entropy", options, dict(x=x), dict(y=y), dict(classes=classes.double(), weights=weights))
        x, classes = leaf(torch.log_softmax(random(9, 6, by=4), 1)), torch.tensor(numbers.integers(0, 6, 9))
        weights = random(6).abs() if weighted else None
        y = F.nll_loss(x, classes, weights, reduction=reduction)
        options = dict(reduction=reduction)
        name = f"likelihood {reduction} {weighted}"
        case(name, "likelihood", options, dict(x=x), dict(y=y), dict(classes=classes.double(), weights=weights))

# Recurrent layers.


def keep_recurrent(name, kind, options, layer, x, states, lengths=None):
    """A layer of PyTorch's own: weights as it names them."""
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(random(*parameter.shape))
    packed = x
    if lengths:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    state = None if states is None else states[0] if len(states) == 1 else tuple(states)
    y, last = layer(packed, state)
    if lengths:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=x.shape[0])
    last = last if isinstance(last, tuple) else (last, None)
    inputs = dict(x=x, **dict(layer.named_parameters()))
    inputs.update(zip(["h0", "c0"], states or []))
    case(name, kind, options, inputs, dict(y=y, h=last[0], c=last[1]))


def recurrent(name, kind, hidden=3, inputs=2, layers=1, both=False, bias=True, lengths=None, states=False, projection=0):
    time, batch, directions = 5, 3, 1 + both
    options = dict(layers=layers, directions=directions)
    if lengths:
        options["lengths"] = sizes(lengths)
    extra = dict(num_layers=layers, bidirectional=both, bias=bias)
    if kind == "lstm":
        layer = torch.nn.LSTM(inputs, hidden, proj_size=projection, **extra)
    elif kind == "gru":
        layer = torch.nn.GRU(inputs, hidden, **extra)
    else:
        layer = torch.nn.RNN(inputs, hidden, nonlinearity=kind, **extra)
    first = None
    if states:
        first = [leaf(random(layers * directions, batch, projection or hidden))]
        if kind == "lstm":
            first.append(leaf(random(layers * directions, batch, hidden)))
    keep_recurrent(f"{kind} {name}", kind, options, layer, leaf(random(time, batch, inputs)), first, lengths)


for kind in ["tanh", "relu", "lstm", "gru"]:
    recurrent("plain", kind)
    recurrent("without bias", kind, bias=False)
    recurrent("states", kind, states=True)
    recurrent("both directions", kind, both=True, states=True)
    recurrent("lengths", kind, lengths=[2, 5, 4], states=True)
    recurrent("lengths, both directions", kind, both=True, lengths=[5, 1, 3])
    recurrent("two layers", kind, layers=2, states=True)
    recurrent("three layers, both directions", kind, layers=3, both=True, lengths=[3, 5, 1], states=True)
    recurrent("more units than lanes", kind, hidden=17, inputs=9)
recurrent("projection", "lstm", hidden=5, projection=3, states=True)
recurrent("projection, both directions", "lstm", hidden=5, projection=2, both=True, lengths=[4, 5, 2], states=True)
recurrent("projection, two layers", "lstm", hidden=4, projection=3, layers=2)


# The activations of ONNX's recurrent operators, with α and β.
FUNCTIONS = dict(
    Affine=lambda x, a, b: a * x + b,
    Elu=lambda x, a, b: torch.where(x > 0, x, a * torch.expm1(x)),
    HardSigmoid=lambda x, a, b: (a * x + b).clamp(0, 1),
    LeakyRelu=lambda x, a, b: torch.where(x > 0, x, a * x),
    Relu=lambda x, a, b: x.clamp(min=0),
    ScaledTanh=lambda x, a, b: a * torch.tanh(b * x),
    Sigmoid=lambda x, a, b: torch.sigmoid(x),
    Softplus=lambda x, a, b: torch.log1p(torch.exp(x)),
    Softsign=lambda x, a, b: x / (1 + x.abs()),
    Tanh=lambda x, a, b: torch.tanh(x),
    ThresholdedRelu=lambda x, a, b: torch.where(x > a, x, 0),
)


def by_hand(name, kind, hidden=4, inputs=3, peephole=False, clip=None, lengths=None, reverse=False, both=False, coupled=False,
            activations=None, alphas=(), betas=(), activation_clip=None, before=True):
    """One layer, step by step, of what PyTorch does not have; reverse reads each sequence from its end, both reads it both ways,
    with activations of the way back after the others. α and β are taken by the activations that have one, in order."""
    time, batch, gates = 5, 3, dict(lstm=4, gru=3, elman=1)[kind]
    left = [iter(alphas), iter(betas)]

    def function(which):
        takes = [which in ("Affine", "Elu", "HardSigmoid", "LeakyRelu", "ScaledTanh", "ThresholdedRelu")]
        a, b = [next(values) if takes else None for values, takes in zip(left, takes + [which in ("Affine", "HardSigmoid", "ScaledTanh")])]
        within = lambda x: x.clamp(-activation_clip, activation_clip) if activation_clip else x
        return lambda x: FUNCTIONS[which](within(x), a, b)

    usual = dict(lstm=["Sigmoid", "Tanh", "Tanh"], gru=["Sigmoid", "Tanh"], elman=["Tanh"])[kind]
    functions = [function(which) for which in activations or usual * (1 + both)]
    if kind == "lstm" and not activations:
        functions[2::3] = [torch.tanh] * (1 + both)  # only what enters a gate is clipped
    valid = torch.tensor(lengths or [time] * batch)

    def read(x, backwards, functions, h, c, u, w, b, b2, p):
        outputs = [None] * time
        for t in reversed(range(time)) if backwards else range(time):
            on = (t < valid).view(-1, 1)
            if kind == "lstm":
                i, f, g, o = (x[t] @ u.T + b + h @ w.T + b2).split(hidden, 1)
                pi, pf, po = p.split(hidden) if peephole else (0, 0, 0)
                gate, candidate, output = functions
                i = gate(i + pi * c)
                new_c = (1 - i if coupled else gate(f + pf * c)) * c + i * candidate(g)
                new_c = new_c.clamp(-clip, clip) if clip else new_c
                new_h = gate(o + po * new_c) * output(new_c)
                c = torch.where(on, new_c, c)
            elif kind == "elman":
                new_h = functions[0](x[t] @ u.T + b + h @ w.T + b2)
            else:
                parts = zip((x[t] @ u.T + b).split(hidden, 1), w.split(hidden), b2.split(hidden))
                (r, wr, br), (z, wz, bz), (n, wn, bn) = parts
                gate, candidate = functions
                r, z = gate(r + h @ wr.T + br), gate(z + h @ wz.T + bz)
                # The reset before the product, or after it.
                n = candidate(n + (r * h) @ wn.T + bn if before else n + r * (h @ wn.T + bn))
                new_h = (1 - z) * n + z * h
            h = torch.where(on, new_h, h)
            outputs[t] = torch.where(on, new_h, 0)
        return torch.stack(outputs), h, c

    state = [2, batch, hidden] if both else [batch, hidden]
    x, h0, c0 = leaf(random(time, batch, inputs)), leaf(random(*state)), None
    weights, ways = {}, []
    for way in range(1 + both):
        u, w = leaf(random(gates * hidden, inputs)), leaf(random(gates * hidden, hidden))
        b, b2 = leaf(random(gates * hidden)), leaf(random(gates * hidden))
        if kind == "lstm" and c0 is None:
            c0 = leaf(random(*state))
        p = leaf(random(3 * hidden)) if peephole else None
        parameters = dict(weight_ih_l0=u, weight_hh_l0=w, bias_ih_l0=b, bias_hh_l0=b2, peephole=p)
        weights |= {key + "_reverse" * way: value for key, value in parameters.items()}
        h, c = [state[way] if both and state is not None else state for state in (h0, c0)]
        share = len(functions) // (1 + both)
        ways.append(read(x, reverse or way == 1, functions[way * share :][:share], h, c, *parameters.values()))
    y, h, c = ways[0]
    if both:
        outputs, *ends = zip(*ways)
        y, (h, c) = torch.cat(outputs, 2), [None if end[0] is None else torch.stack(end) for end in ends]
    options = dict(layers=1, directions=1 + both, reverse=int(reverse))
    if kind == "gru":
        options["before"] = int(before)
    if coupled:
        options["coupled"] = 1
    if activations:
        options |= dict(activations=sizes(activations), alphas=sizes(alphas), betas=sizes(betas))
    if activation_clip:
        options["activation_clip"] = activation_clip
    if clip:
        options["clip"] = clip
    if lengths:
        options["lengths"] = sizes(lengths)
    case(f"{kind} {name}", kind, options, dict(x=x, **weights, h0=h0, c0=c0), dict(y=y, h=h, c=c))


for reverse in [False, True]:
    way = "reverse" if reverse else "forward"
    by_hand(f"reset before {way}", "gru", reverse=reverse)
    by_hand(f"reset before {way}, lengths", "gru", reverse=reverse, lengths=[4, 2, 5])
    by_hand(f"peephole {way}", "lstm", peephole=True, reverse=reverse)
    by_hand(f"peephole, clip {way}", "lstm", peephole=True, clip=0.4, reverse=reverse, lengths=[1, 5, 3])
by_hand("clip", "lstm", clip=0.3)
by_hand("coupled", "lstm", coupled=True)
by_hand("coupled, peepholes, clip", "lstm", coupled=True, peephole=True, clip=0.4, reverse=True)
for before in [False, True]:
    way = dict(before=before, lengths=[5, 2, 4])
    name = "reset before" if before else "reset after"
    by_hand(f"{name}, hard", "gru", activations=["HardSigmoid", "Softsign"], alphas=[0.25], betas=[0.375], **way)
    by_hand(f"{name}, Elu", "gru", activations=["Sigmoid", "Elu"], alphas=[0.75], activation_clip=0.75, **way)
    by_hand(f"{name}, Relu", "gru", activations=["Softsign", "Relu"], **way)
by_hand("hard", "lstm", activations=["HardSigmoid", "ScaledTanh", "Softsign"], alphas=[0.25, 1.25], betas=[0.5, 0.625])
by_hand("LeakyRelu", "lstm", activations=["Sigmoid", "LeakyRelu", "Affine"], alphas=[0.125, 0.5], betas=[0.25], peephole=True)
by_hand("Softplus, coupled", "lstm", activations=["ScaledTanh", "Softplus", "Elu"], alphas=[0.5, 0.75], betas=[0.5],
        coupled=True, lengths=[3, 5, 1])
by_hand("clip of arguments", "lstm", activation_clip=0.5, peephole=True, reverse=True)
for which, alphas, betas in [("Softsign", [], []), ("ThresholdedRelu", [0.25], []), ("Affine", [0.5], [0.125]), ("Sigmoid", [], [])]:
    by_hand(which, "elman", activations=[which], alphas=alphas, betas=betas, lengths=[4, 5, 2])
by_hand("clip of arguments", "elman", activation_clip=0.5, lengths=[4, 5, 2])
by_hand("clip of arguments, reverse", "elman", activations=["Elu"], alphas=[0.75], activation_clip=0.75, reverse=True)
both = dict(both=True, lengths=[4, 2, 5])
by_hand("both ways", "elman", activations=["LeakyRelu", "ScaledTanh"], alphas=[0.125, 1.25], betas=[0.5], **both)
by_hand("both ways, clip of arguments", "elman", activations=["Affine", "Softsign"], alphas=[0.5], betas=[0.125], activation_clip=0.5,
        **both)
by_hand("both ways", "lstm", activations=["HardSigmoid", "Softsign", "Elu", "Sigmoid", "Affine", "ScaledTanh"],
        alphas=[0.25, 0.5, 0.75, 1.5], betas=[0.375, 0.125, 0.625], peephole=True, **both)
by_hand("both ways, clip of arguments", "lstm", activation_clip=0.5, clip=0.4, coupled=True, **both)
for before in [False, True]:
    name = "both ways, reset before" if before else "both ways, reset after"
    by_hand(name, "gru", activations=["HardSigmoid", "Tanh", "Softsign", "Elu"], alphas=[0.25, 0.75], betas=[0.375], before=before, **both)
by_hand("both ways, clip of arguments", "gru", activation_clip=0.5, before=False, **both)


def main():
    header, at, data = {"__metadata__": cases}, 0, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().numpy().astype("<f8").tobytes()
        header[name] = dict(dtype="F64", shape=list(tensor.shape), data_offsets=[at, at + len(raw)])
        at, data = at + len(raw), data + raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = pathlib.Path(__file__).with_suffix(".safetensors.gz")
    path.write_bytes(gzip.compress(struct.pack("<Q", len(text)) + text + data, mtime=0))
    print(f"{len(cases)} cases, {len(tensors)} tensors, {path.stat().st_size} bytes")


main()
