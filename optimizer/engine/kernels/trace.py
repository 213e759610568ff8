"""A torch module as a list of operations: those that the kernels know, and the rest, which torch runs.

``torch.export`` gives the graph. What follows a convolution and only looks at one pixel (adding, clipping) is
merged into it here, since the kernels do it on the way out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from optimizer.engine.exporting import advice, exporting
from optimizer.errors import WorkError, one_line
from optimizer.methods.engines import use_another
from optimizer.model.examples import examples

aten = torch.ops.aten


@dataclass(frozen=True)
class Window:
    """What a convolution or a pool looks at: ``kernel`` (rows, columns), every ``stride`` pixels, beginning
    ``top`` rows above and ``left`` columns beside the image."""

    kernel: tuple[int, int]
    stride: int
    top: int
    left: int


@dataclass(frozen=True)
class Op:
    """One operation on named values. ``kind``: ``convolution``, ``depthwise``, ``linear``, ``add``,
    ``clip``, ``max pool``, ``mean``, ``flatten``, ``same`` (another name of its input), or ``torch``.

    The result is clipped to ``low`` .. ``high`` after ``added``, another value, was added to it. ``weight``
    and ``bias`` are paths of parameters. ``node`` is what torch runs.
    """

    kind: str
    output: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    node: Node
    weight: str = ""
    bias: str = ""
    window: Window | None = None
    added: str = ""
    low: float = -math.inf
    high: float = math.inf

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.inputs, self.added) if self.added else self.inputs


@dataclass(frozen=True)
class Tap:
    """One weight position of a window: which phase of the input, and how many rows and columns away.

    With a stride of 2 every second pixel of every second row is a phase of its own, of four, and has the
    output's resolution.
    """

    phase: tuple[int, int]
    down: int
    right: int


def taps(window: Window) -> list[Tap]:
    """Every position of a window, row by row."""
    found = []
    for row, column in product(*map(range, window.kernel)):
        down, up = divmod(row - window.top, window.stride)
        right, left = divmod(column - window.left, window.stride)
        found.append(Tap((up, left), down, right))
    return found


def fits(op: Op, before: tuple[int, ...]) -> bool:
    """Whether the kernels can do ``op`` on an input of shape ``before``.

    The phases of a convolution's input must not be larger than its output where a tap looks beyond that:
    what lies there would stand where the padding is.
    """
    if op.kind in ("linear", "flatten", "clip", "add"):
        return len(op.shape) in (2, 3, 4)
    if op.kind not in ("convolution", "depthwise", "max pool", "mean"):
        return False
    if op.kind in ("max pool", "mean") or op.window is None:
        return before[2:] != (1, 1)
    if op.window.stride == 1 and before[2:] != op.shape[2:]:
        return False
    if op.shape[2:] == (1, 1):
        return op.window == Window((1, 1), 1, 0, 0)
    return not any(
        -(-(size - phase) // op.window.stride) > out and move > 0
        for tap in taps(op.window)
        for phase, move, size, out in zip(
            tap.phase, (tap.down, tap.right), before[2:], op.shape[2:], strict=True
        )
    )


@dataclass(frozen=True)
class Trace:
    """The operations in their order, the input's name, the output's, and each other value's shape.

    ``constants`` gives the path of a parameter or buffer, the tensor itself, or the graph that torch runs for
    a block of the model's code (``torch.autocast``), of values that are not computed.
    """

    ops: tuple[Op, ...]
    input: str
    output: str
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, str | Tensor | nn.Module] = field(default_factory=dict)

    def root(self, name: str) -> str:
        """The value that ``name`` is another name of."""
        while name in self.aliases:
            name = self.aliases[name]
        return name

    @cached_property
    def aliases(self) -> dict[str, str]:
        return {op.output: op.inputs[0] for op in self.ops if op.kind == "same"}


def trace(model: nn.Module, shape: Sequence[int]) -> Trace:
    """The operations of ``model`` for inputs of ``shape`` ``[N, C, H, W]``. Raises WorkError."""
    try:
        with torch.no_grad(), exporting():
            exported = torch.export.export(
                model, (examples(model, tuple(shape[1:]), shape[0]),), strict=False
            )
    except Exception as error:  # exporting runs the model's own code: anything may come out of it
        raise WorkError(
            f"the model can't be exported for the sparse engine: {one_line(error, 300)}. "
            + advice("sparse", error)
        ) from error
    signature = exported.graph_signature
    constants: dict[str, str | Tensor | nn.Module] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **{
            name: exported.constants[path]
            for name, path in signature.inputs_to_lifted_tensor_constants.items()
        },
        **{
            node.name: getattr(exported.graph_module, node.target)
            for node in exported.graph.nodes
            if node.op == "get_attr"
        },
    }
    nodes = [node for node in exported.graph.nodes if node.op == "call_function"]
    shapes = {
        node.name: _shape(node) for node in exported.graph.nodes if isinstance(node.meta.get("val"), Tensor)
    }
    ops = [_read(node, constants, shapes) for node in nodes]
    output = signature.user_outputs[0]
    if len(signature.user_outputs) != 1 or output is None:
        raise WorkError(f"the model gives {len(signature.user_outputs)} outputs: the sparse engine knows one")
    source = signature.user_inputs[0]
    return Trace(tuple(_merged(_padded(ops, shapes, output), output)), source, output, shapes, constants)


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)


def _read(node: Node, constants: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Op:
    """A node as the operation that it is; as one of torch's when the kernels don't know it."""
    op = Op(
        "torch",
        node.name,
        tuple(source.name for source in node.all_input_nodes if source.name not in constants),
        shapes.get(node.name, ()),
        node,
    )
    schema = getattr(node.target, "_schema", None)  # operator.getitem has none
    if schema and schema.is_mutable and any(len(source.users) > 1 for source in node.all_input_nodes[:1]):
        raise WorkError(
            f"the model changes {node.all_input_nodes[0].name} in place and uses it elsewhere, which the "
            f"sparse engine can't follow. {use_another('sparse')}"
        )
    reader = READERS.get(node.target) if _in_float32(node) else None
    known = reader(op, *_arguments(node)) if reader else None
    computed = known and {known.weight, known.bias} - {""} - constants.keys()  # as attention splits its own
    return op if known is None or computed or not known.inputs else known


def _in_float32(node: Node) -> bool:
    """Whether all that it reads and gives is: the kernels would take whole numbers' bits for floats."""
    values = [one.meta.get("val") for one in (node, *node.all_input_nodes)]
    return all(isinstance(one, Tensor) and one.dtype == torch.float32 for one in values)


def _arguments(node: Node) -> list[Any]:
    """Positional arguments, defaults filled in from the operator's schema."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
    return [given.get(argument.name, argument.default_value) for argument in schema.arguments]


def _path(node: Node | None) -> str:
    return "" if node is None else node.name


def _convolution(
    op: Op,
    source: Node,
    weight: Node,
    bias: Node | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Op | None:
    out, inner, rows, columns = _shape(weight)
    stride, padding = _pair(stride), _pair(padding)
    if stride[0] != stride[1] or _pair(dilation) != (1, 1):
        return None
    if groups != 1 and not (groups == out and inner == 1 and _shape(source)[1] == out):
        return None
    window = Window((rows, columns), stride[0], *padding)
    kind = "convolution" if groups == 1 else "depthwise"
    return replace(op, kind=kind, inputs=(source.name,), weight=weight.name, bias=_path(bias), window=window)


def _linear(op: Op, source: Node, weight: Node, bias: Node | None) -> Op | None:
    if len(_shape(source)) not in (2, 3) or source.name == weight.name:
        return None
    return replace(op, kind="linear", inputs=(source.name,), weight=weight.name, bias=_path(bias))


def _add(op: Op, first: Any, second: Any, alpha: float = 1) -> Op | None:
    both = isinstance(first, Node) and isinstance(second, Node)
    if not both or alpha != 1 or len(op.inputs) != 2 or not _shape(first) == _shape(second) == op.shape:
        return None
    return replace(op, kind="add", inputs=(first.name,), added=second.name)


def _clip(op: Op, source: Node, low: float | None = 0.0, high: float | None = None) -> Op:
    return replace(
        op,
        kind="clip",
        low=-math.inf if low is None else float(low),
        high=math.inf if high is None else float(high),
    )


def _max_pool(
    op: Op, source: Node, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Op | None:
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride) if stride else kernel
    if len(op.shape) != 4 or ceil_mode or _pair(dilation) != (1, 1) or len({*kernel}) + len({*stride}) > 2:
        return None
    return replace(op, kind="max pool", window=Window(kernel, stride[0], *padding))


def _mean(op: Op, source: Node, sizes: Any, keep: bool = True, dtype: object = None) -> Op | None:
    whole = [axis % 4 for axis in sizes] == [2, 3] and dtype is None and len(_shape(source)) == 4
    return replace(op, kind="mean") if whole else None


def _average_pool(op: Op, source: Node, size: Any) -> Op | None:
    return replace(op, kind="mean") if _pair(size) == (1, 1) and len(_shape(source)) == 4 else None


def _same(op: Op, source: Node, *_: Any) -> Op | None:
    return replace(op, kind="same") if _shape(source) == op.shape else None


def _reshaped(op: Op, source: Node, *_: Any) -> Op | None:
    """Nothing but the end of a network's planes: features in a row. Values of three axes lie otherwise, and
    those of five nowhere."""
    before = _shape(source)
    ends = before[:2] == op.shape[:2] and math.prod(before[2:]) == math.prod(op.shape[2:]) == 1
    if ends and {len(before), len(op.shape)} <= {2, 4}:
        return replace(op, kind="same")
    flat = len(before) == 4 and op.shape == (before[0], math.prod(before[1:]))
    return replace(op, kind="flatten") if flat else None


def _pad(
    op: Op, source: Node, sizes: Sequence[int], mode: Any = "constant", value: float | None = 0
) -> Op | None:
    """Rows and columns of zeros around; a convolution takes them into its window, see :func:`_padded`."""
    zeros = mode == "constant" and not value and len(sizes) == 4 and min(sizes) >= 0
    return replace(op, kind="pad") if zeros else None


Reader = Callable[..., Op | None]
READERS: dict[Any, Reader] = {
    aten.conv2d.default: _convolution,
    aten.linear.default: _linear,
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add,
    aten.relu.default: _clip,
    aten.relu_.default: _clip,
    aten.relu6.default: lambda op, source: _clip(op, source, 0, 6),
    aten.hardtanh.default: _clip,
    aten.hardtanh_.default: _clip,
    aten.clamp.default: _clip,
    aten.max_pool2d.default: _max_pool,
    aten.mean.dim: _mean,
    aten.adaptive_avg_pool2d.default: _average_pool,
    aten.dropout.default: lambda op, source, share, train: None if train else _same(op, source),
    aten.contiguous.default: _same,
    aten.alias.default: _same,
    aten.flatten.using_ints: _reshaped,
    aten.view.default: _reshaped,
    aten.reshape.default: _reshaped,
    aten.squeeze.dims: _reshaped,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: lambda op, source, sizes, value: _pad(op, source, sizes, "constant", value),
}


def _pair(size: Any) -> tuple[int, int]:
    values = (size,) if isinstance(size, int) else tuple(size)
    return (values[0], values[-1])


def _padded(ops: Sequence[Op], shapes: dict[str, tuple[int, ...]], output: str) -> list[Op]:
    """Padding that only convolutions see becomes part of their windows; any other is left to torch."""
    pads = {op.output: op for op in ops if op.kind == "pad"}
    widened = [_widened(op, pads[op.inputs[0]]) if op.inputs and op.inputs[0] in pads else op for op in ops]
    outside = {output} | {
        name
        for before, after in zip(ops, widened, strict=True)
        for place, name in enumerate(before.reads)
        if not (place == 0 and after.window and fits(after, shapes[after.inputs[0]]))
    }
    result = []
    for before, after in zip(ops, widened, strict=True):
        if before.kind == "pad":
            result += [replace(before, kind="torch")] if before.output in outside else []
        else:
            result.append(before if set(before.inputs) & outside else after)
    return result


def _widened(op: Op, pad: Op) -> Op:
    """``op`` with the padding before it in its window."""
    if op.kind not in ("convolution", "depthwise") or op.window is None:
        return op
    left, _, top, _ = _arguments(pad.node)[1]
    return replace(
        op, inputs=pad.inputs, window=replace(op.window, top=op.window.top + top, left=op.window.left + left)
    )


def _users(ops: Sequence[Op]) -> dict[str, list[Op]]:
    users: dict[str, list[Op]] = {}
    for op in ops:
        for name in op.reads:
            users.setdefault(name, []).append(op)
    return users


def _merged(ops: Sequence[Op], output: str) -> list[Op]:
    """Additions and clips done by the operation whose result they alone use."""
    users = _users(ops)
    merged: dict[str, Op] = {}  # by output, in order

    def only_for(op: Op, name: str) -> Op | None:
        """What computes ``name``, when nobody but ``op`` reads it."""
        maker = merged.get(name)
        return maker if maker and name != output and len(users[name]) == 1 else None

    for op in ops:
        taken = op
        if op.kind == "add":
            for name, other in ((op.inputs[0], op.added), (op.added, op.inputs[0])):
                maker = only_for(op, name)
                plain = maker and not maker.added and maker.low == -math.inf and maker.high == math.inf
                if maker and plain and maker.kind in ("convolution", "linear"):
                    del merged[name]
                    taken = replace(maker, output=op.output, added=other)
                    break
        elif op.kind == "clip":
            maker = only_for(op, op.inputs[0])
            if maker and maker.kind in ("convolution", "depthwise", "linear", "add", "max pool"):
                del merged[maker.output]
                low, high = max(maker.low, op.low), min(maker.high, op.high)
                taken = replace(maker, output=op.output, low=low, high=high)
        merged[taken.output] = taken
    return list(merged.values())
