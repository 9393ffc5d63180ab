"""Caffe's `.caffemodel` files: protobuf, read to named float32 blobs.

The schema has only the fields with weights; the protobuf library skips the others. Field numbers
are those of BVLC/caffe's caffe.proto.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from torch import Tensor

from service.errors import BadWeights

# message -> [(field, number, type, repeated)]; a type in capitals is another message.
_SCHEMA: dict[str, list[tuple[str, int, str, bool]]] = {
    "BlobShape": [("dim", 1, "int64", True)],
    "BlobProto": [
        ("num", 1, "int32", False),
        ("channels", 2, "int32", False),
        ("height", 3, "int32", False),
        ("width", 4, "int32", False),
        ("data", 5, "float", True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, "double", True),
    ],
    "V1LayerParameter": [("name", 4, "string", False), ("blobs", 6, "BlobProto", True)],
    "LayerParameter": [("name", 1, "string", False), ("blobs", 7, "BlobProto", True)],
    "NetParameter": [
        ("layers", 2, "V1LayerParameter", True),
        ("layer", 100, "LayerParameter", True),
    ],
}


def read(path: Path) -> dict[str, list[Tensor]]:
    """Read each layer's blobs (weight, then bias) by layer name.

    Supports `layer` and the older V1 `layers`, whose blobs have four legacy dimensions. Raises
    `BadWeights` for other files, and for blobs that do not match their shape.
    """
    net = _net_parameter()
    try:
        net.ParseFromString(path.read_bytes())
    except message.DecodeError as error:
        raise BadWeights(f"{path.name} is not a Caffe model, or is cut short") from error
    layers = [*net.layers, *net.layer]
    blobs = {layer.name: [_tensor(blob, layer.name) for blob in layer.blobs] for layer in layers}
    if not any(blobs.values()):
        raise BadWeights(f"{path.name} is not a Caffe model: it holds no layer with weights")
    return {name: tensors for name, tensors in blobs.items() if tensors}


def _tensor(blob: Any, layer: str) -> Tensor:
    if blob.HasField("shape"):
        shape = list(blob.shape.dim)
    else:
        shape = [blob.num, blob.channels, blob.height, blob.width]
    with np.errstate(over="ignore"):  # too large values become infinite, which is refused later
        values = np.asarray(blob.data or blob.double_data, dtype=np.float32)
    if min(shape, default=1) < 1 or int(np.prod(shape, dtype=object)) != values.size:
        raise BadWeights(f"layer {layer!r} says it is {shape} but holds {values.size} numbers")
    return torch.from_numpy(values).reshape(shape)


def _net_parameter() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _SCHEMA.items():
        schema = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            added = schema.field.add(
                name=field,
                number=number,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
            )
            if kind in _SCHEMA:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                added.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
                added.options.packed = repeated and kind != "string"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))()
