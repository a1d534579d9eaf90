"""Host side: functions of a graph as ONNX files, in the shape that ACTS's edge classifiers take."""

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hypertrack_jax.errors import MissingPackageError

INPUTS = ("node_features", "edge_index", "edge_features")
"""Names of the inputs; `edge_index` has 64 bits, as ACTS gives it."""
OUTPUT = "logit"
_OPSET = 18
"""Has sums and maxima over segments, and runtimes of 2023 know it."""


def onnx_file(
    function: Callable[..., Any],
    num_node_features: int,
    num_edge_features: int,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A function of `INPUTS` as an ONNX file, for any numbers of hits and edges.

    Args:
      function: it gives one number for each edge; its `edge_index` has 32 bits.
      num_node_features: columns of the nodes.
      num_edge_features: columns of the edges; 0 if the function does not take them.
      metadata: what else the file is to tell, by name.

    Raises:
      MissingPackageError: jax2onnx is not installed.
    """
    try:
        jax2onnx, onnx = map(importlib.import_module, ("jax2onnx", "onnx"))
    except ImportError as error:
        raise MissingPackageError(
            "ONNX needs jax2onnx; install it with pip install 'hypertrack-jax[onnx]'."
        ) from error
    num_hits, num_edges = jax.export.symbolic_shape("hit, edge")
    inputs: Sequence[Any] = [
        jax.ShapeDtypeStruct((num_hits, num_node_features), jnp.float32),
        jax.ShapeDtypeStruct((2, num_edges), jnp.int32),
        jax.ShapeDtypeStruct((num_edges, num_edge_features), jnp.float32),
    ][: 3 if num_edge_features else 2]
    # Code of jax2onnx's own adds float64 to float32, and asks for 64 bits, and warns of it.
    with jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = jax2onnx.to_onnx(
            function,
            inputs,
            opset=_OPSET,
            input_names=INPUTS[: len(inputs)],
            output_names=[OUTPUT],
        )
    onnx.helper.set_model_props(model, dict(metadata or {}))
    return _with_wide_index(onnx, model).SerializeToString()


def _with_wide_index(onnx: Any, model: Any) -> Any:
    """The model with an `edge_index` of 64 bits."""
    name = INPUTS[1]
    for graph in _graphs(model.graph):
        for node in graph.node:
            node.input[:] = [f"{name}_32" if given == name else given for given in node.input]
    (index,) = (given for given in model.graph.input if given.name == name)
    index.type.tensor_type.elem_type = onnx.TensorProto.INT64
    cast = onnx.helper.make_node("Cast", [name], [f"{name}_32"], to=onnx.TensorProto.INT32)
    model.graph.node.insert(0, cast)
    return model


def _graphs(graph: Any) -> list[Any]:
    """A graph and those of the loops in it."""
    inner = [part.g for node in graph.node for part in node.attribute if part.HasField("g")]
    return [graph, *(one for part in inner for one in _graphs(part))]
