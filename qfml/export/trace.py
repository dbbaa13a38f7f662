"""One trace of a pure function as an ONNX graph, into which any member's tensors are put.

While the exporter runs, the tensors of a network are inputs of the graph, so that nothing which depends on them is
folded into a constant; afterwards they are made initializers, the weights of an ONNX file. Another member's tensors go
into a copy of the same graph, without another trace.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.numpy_helper
import torch
from onnxscript import opset18
from torch import Tensor
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from qfml.errors import UserError

__all__ = ["Template", "memory_apart", "trace", "with_gradient"]

# of the inputs (N, ...) and the tensors by name: the outputs, each with N rows first
Function = Callable[[Tensor, Mapping[str, Tensor]], Tensor | tuple[Tensor, ...]]
# ONNX's own layer norm gives the statistics, which the derivatives read, in float32 whatever its inputs
_WRITTEN_OUT = [torch.ops.aten.native_layer_norm.default, torch.ops.aten.native_layer_norm_backward.default]
_TALKATIVE = [f"torch.onnx._internal.exporter.{name}" for name in ("_registration", "_core")]
_PREFIX = "own."  # of a tensor's name in the graph, which the exporter gives to no result of its own


@dataclass(frozen=True, eq=False)
class Template:
    """A traced graph whose tensors are still inputs."""

    proto: Any
    tensors: tuple[str, ...]

    def filled(self, tensors: Mapping[str, Tensor]) -> Any:
        """The model with `tensors` as its initializers; the template is left as it was."""
        model = copy.deepcopy(self.proto)
        graph = model.graph
        own = {_PREFIX + name: tensors[name].detach().contiguous() for name in self.tensors}
        traced = {value.name: value for value in graph.input if value.name in own}
        for name, value in traced.items():
            shape = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
            assert shape == tuple(own[name].shape), f"{name}: traced with {shape}, filled with {tuple(own[name].shape)}"
        kept = [value for value in graph.input if value.name not in own]
        del graph.input[:]
        graph.input.extend(kept)
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        graph.initializer.extend(
            onnx.numpy_helper.from_array(own[name].numpy(), name) for name in traced if name in used
        )
        return model


def trace(
    function: Function,
    example: Tensor,
    tensors: Mapping[str, Tensor],
    *,
    input_name: str,
    output_names: Sequence[str],
    differentiated: bool = False,
) -> Template:
    """The graph of `function`, with any number of rows.

    Args:
        function: plain tensor operations on inputs (N, ...) and tensors by name.
        example: inputs of at least one row.
        tensors: what a filled graph holds; only their shapes and number formats matter here.
        input_name: of the inputs in the graph.
        output_names: of the outputs in the graph, in their order.
        differentiated: whether `function` differentiates (see `with_gradient`). The exporter does not know torch's
            transforms, so that the operations they end in are traced before it sees them.

    Raises:
        UserError: an operation that ONNX has no equal of.
    """
    names, values = tuple(tensors), tuple(tensors.values())
    example = _unmistakable(example, values)

    def positional(x: Tensor, *own: Tensor) -> Tensor | tuple[Tensor, ...]:
        return function(x, dict(zip(names, own, strict=True)))

    with _quiet(), _operations_named():
        if differentiated:
            written_out: Any = get_decompositions(_WRITTEN_OUT)
            traced = make_fx(positional, written_out, tracing_mode="symbolic", _allow_non_fake_inputs=True)
            module = traced(example, *values)
        else:
            module = _Positional(positional)
        fixed: Any = ({},) * len(values)
        rows = {0: torch.export.Dim("rows")}
        program = torch.onnx.export(
            module.eval(),
            (example, *values),
            dynamo=True,
            dynamic_shapes=(rows, *fixed) if differentiated else (rows, fixed),
            input_names=[input_name, *(_PREFIX + name for name in names)],
            output_names=list(output_names),
            custom_translation_table={torch.ops.aten.log_sigmoid.default: _log_sigmoid},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _forget_origin(proto)
    [first] = [value for value in proto.graph.input if value.name == input_name]
    assert first.type.tensor_type.shape.dim[0].dim_param, "the exporter has fixed the number of rows"
    return Template(proto, names)


def memory_apart(model: Any, inputs: str, width: int, memory: str, n_memory: int) -> None:
    """Let the last `n_memory` columns of a model's only input, in float64, be an input of their own, in float32.

    Args:
        model: changed in place.
        inputs: name of the input; it keeps its first `width` columns.
        width: of what stays.
        memory: name of the new input.
        n_memory: its columns.
    """
    graph, joint, wide = model.graph, f"{inputs}.joint", f"{memory}.double"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == inputs:
                node.input[place] = joint
    [source] = [value for value in graph.input if value.name == inputs]
    rows = source.type.tensor_type.shape.dim[0].dim_param
    source.type.tensor_type.shape.dim[1].dim_value = width
    graph.input.append(onnx.helper.make_tensor_value_info(memory, onnx.TensorProto.FLOAT, [rows, n_memory]))
    graph.node.insert(0, onnx.helper.make_node("Concat", [inputs, wide], [joint], axis=1))
    graph.node.insert(0, onnx.helper.make_node("Cast", [memory], [wide], to=onnx.TensorProto.DOUBLE))


def with_gradient(function: Function) -> Function:
    """(value, gradient in the inputs, further outputs) of a `function` whose first output is (N,), row by row.

    For `trace(..., differentiated=True)`.
    """

    def value_and_gradient(x: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        def value_first(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            found = function(x, tensors)
            return (found[0], tuple(found[1:])) if isinstance(found, tuple) else (found, ())

        differentiated: Any = torch.func.vjp(value_first, x, has_aux=True)
        value, pull, rest = differentiated
        return value, pull(torch.ones_like(value))[0], *rest  # a row's value depends on that row alone

    return value_and_gradient


def _log_sigmoid(x: Any) -> Any:
    """The exporter's own is the logarithm of the logistic function, which is -inf where that underflows."""
    op: Any = opset18
    return op.Neg(op.Softplus(op.Neg(x)))


def _unmistakable(example: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Rows of the example, repeated until their number is none of the other sizes, which the exporter takes for it."""
    taken = {size for tensor in (example[0], *tensors) for size in tensor.shape}
    n_rows = next(n for n in range(5, 10_000) if not any(size % n == 0 for size in taken if size))
    return example[:1].expand(n_rows, *example.shape[1:]).contiguous()


class _Positional(torch.nn.Module):
    """The exporter takes modules only."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, *tensors: Tensor) -> Any:
        return self.function(x, *tensors)


def _forget_origin(model: Any) -> None:
    """Remove what the exporter notes of the code: line numbers, and paths of this machine."""
    graph = model.graph
    for each in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        each.doc_string = ""
        if hasattr(each, "metadata_props"):
            del each.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


@contextmanager
def _operations_named() -> Iterator[None]:
    """The exporter's errors as one that names the operation; its own tell how to extend torch."""
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        chain: list[str] = []
        cause: BaseException | None = error
        while cause is not None:
            chain.append(str(cause))
            cause = cause.__cause__
        named = re.search(r"OpOverload\(op='([\w.]+)'", "\n".join(reversed(chain)))
        if named is None:
            raise UserError(f"torch cannot write this network as ONNX: {chain[-1]}; serve it with qfml") from error
        raise UserError(
            f"the network or what surrounds it uses `{named[1]}`, which has no equal in ONNX: take another network or "
            "transform, or serve it with qfml"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of itself: libraries not installed, tensors it has renamed, a deprecation of its own."""
    logs = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
