"""What a model's graph does, read off its file before TensorFlow runs any of it; and whether two graphs do the same.

A SavedModel is a program: TensorFlow runs what it calls an initializer as it loads, and a graph may write files, open
sockets or call Python. So each op of the graph and of its function library has to be on a list: arithmetic on
tensors, and variables. The ops that save and restore variables read and write files; each SavedModel holds them,
once, in two functions that only its saver calls (TensorFlow's loader in Python does not even do that). There they may
stay.

A graph's fingerprint leaves out what names things (functions are numbered by whoever loaded them) and the values
of its variables. Two versions that differ in weights alone have one fingerprint, hence one compiled program.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ebbtide.model.errors import ModelDamaged, ModelUntrusted

GRAPH = "saved_model.pb"
OTHER_GRAPHS = ("saved_model.cpb", "saved_model.pbtxt")
"""Forms of the same file that TensorFlow would read, too: there is one graph, and it is the one that was looked at."""

ARITHMETIC = """
    Abs Acos Add AddN AddV2 All Any ArgMax ArgMin Asin Atan Atan2 BatchMatMulV2 BiasAdd BiasAddGrad Bitcast BitwiseAnd
    BitwiseOr BitwiseXor BroadcastArgs BroadcastGradientArgs BroadcastTo Cast Ceil ClipByValue Concat ConcatOffset
    ConcatV2 Const Cos Cosh Cumprod Cumsum Div DivNoNan Einsum Elu EluGrad Equal Erf Erfc Exp ExpandDims Expm1 Fill
    Floor FloorDiv FloorMod Gather GatherNd GatherV2 Greater GreaterEqual Identity IdentityN Inv Invert IsFinite IsInf
    IsNan L2Loss LeakyRelu LeakyReluGrad LeftShift Less LessEqual Lgamma LinSpace Log Log1p LogSoftmax LogicalAnd
    LogicalNot LogicalOr MatMul Max Maximum Mean Min Minimum Mod Mul MulNoNan Neg NextAfter NoOp NotEqual OneHot
    OnesLike Pack Pad PadV2 ParallelConcat Placeholder PlaceholderWithDefault Pow PreventGradient Prod Range Rank
    RealDiv Reciprocal Relu Relu6 Relu6Grad ReluGrad Reshape Reverse ReverseSequence ReverseV2 RightShift Rint Roll
    Round Rsqrt RsqrtGrad ScatterNd SegmentSum Select SelectV2 Selu SeluGrad Shape ShapeN Sigmoid SigmoidGrad Sign Sin
    Sinh Size Slice Snapshot Softmax Softplus SoftplusGrad Softsign SoftsignGrad Split SplitV Sqrt SqrtGrad Square
    SquaredDifference Squeeze StopGradient StridedSlice StridedSliceGrad Sub Sum Tan Tanh TanhGrad TensorScatterUpdate
    Tile TopKV2 Transpose TruncateDiv TruncateMod Unpack UnsortedSegmentSum Where Xdivy Xlog1py Xlogy ZerosLike
"""
CONTROL = """
    Assert Case EmptyTensorList If PartitionedCall StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile
    TensorListConcatV2 TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem TensorListLength
    TensorListPopBack TensorListPushBack TensorListReserve TensorListResize TensorListSetItem TensorListSplit
    TensorListStack While
"""
STRINGS = "DecodePaddedRaw StringLength"
"""What takes a stored record apart; an `Assert` refuses one that is none."""
VARIABLES = "AssignVariableOp DisableCopyOnRead ReadVariableOp VarHandleOp VarIsInitializedOp VariableShape"
SAVER = "MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch StringJoin"

COMPUTING = frozenset(f"{ARITHMETIC} {CONTROL} {STRINGS} {VARIABLES}".split())
SAVING = frozenset(SAVER.split())

OBJECTS = {
    "user_object",
    "function",
    "bare_concrete_function",
    "variable",
    "constant",
    "captured_tensor",
    None,
}
"""What a SavedModel may make as it is loaded. The others, `resource` and `asset`, run an initializer or read a file."""


def check_graph(path: Path, title: str) -> None:
    """Look at the graph of the version in `path`. Raises ModelUntrusted for one that does more than compute,
    ModelDamaged for one that cannot be read."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - comes with TensorFlow
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415 - and so does this

    for other in OTHER_GRAPHS:
        if (path / other).exists():
            raise ModelUntrusted(f"model {title} holds a second graph, {other}", hint="remove that version")
    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString((path / GRAPH).read_bytes())
    except (OSError, DecodeError) as error:
        raise ModelDamaged(
            f"model {title} cannot be loaded: its graph cannot be read: {error}",
            hint="publish it again with this release",
        ) from None
    if len(model.meta_graphs) != 1 or not model.meta_graphs[0].HasField("object_graph_def"):
        raise ModelUntrusted(
            f"model {title} was not made by this release's exporter", hint="publish it again"
        )
    for meta in model.meta_graphs:
        if wrong := next(iter(_problems(meta)), None):
            raise ModelUntrusted(
                f"model {title} does more than compute: {wrong}",
                hint="a model is a program: remove this version, and look at who may write there",
            )


def _problems(meta: Any) -> Iterator[str]:
    """What is wrong with a MetaGraphDef, in words."""
    functions = {function.signature.name: function for function in meta.graph_def.library.function}
    saving = {name for name, function in functions.items() if _ops(function.node_def) & SAVING}
    saver = {_node_of(meta.saver_def.save_tensor_name), _node_of(meta.saver_def.restore_op_name)} - {""}
    for node in meta.graph_def.node:
        if _called(node) & saving and node.name not in saver:
            yield f"{node.op} {node.name} calls what only its saver may call"
    # TF Serving's own way to the saver: a name of a file, which it feeds, and the functions' results.
    bodies = [("the graph", meta.graph_def.node)] + [(name, f.node_def) for name, f in functions.items()]
    for name, nodes in bodies:
        allowed = COMPUTING | SAVING if name in saving else COMPUTING
        for op in sorted(_ops(nodes) - allowed):
            yield f"the op {op} in {name}"
    for name, function in functions.items():
        for node in function.node_def:
            if _called(node) & saving:
                yield f"{name} calls what only its saver may call"
    named = set(meta.object_graph_def.concrete_functions)
    for node in meta.object_graph_def.nodes:
        kind = node.WhichOneof("kind")
        if kind not in OBJECTS:
            yield f"it makes a {kind} as it is loaded"
        named |= set(node.function.concrete_functions) | {node.bare_concrete_function.concrete_function_name}
        if node.registered_saver:
            yield f"it is restored by {node.registered_saver}"
    if named & saving:
        yield f"{min(named & saving)} may be called by who loads it"
    if meta.asset_file_def:
        yield "it reads files of its own"


def _ops(nodes: Iterable[Any]) -> set[str]:
    return {node.op for node in nodes}


def _node_of(tensor: str) -> str:
    return tensor.partition(":")[0].removeprefix("^")


def _called(node: Any) -> set[str]:
    """Functions that a node calls, by attribute or by being one."""
    called = {node.op}
    for value in node.attr.values():
        called |= {value.func.name, *(each.name for each in value.list.func)}
    return called - {""}


# -- is it the same graph?


def fingerprint(graph: Any, inputs: Sequence[str], outputs: Mapping[str, str]) -> str:
    """Of a GraphDef as a function of its `inputs` (names of placeholders, in order) to its `outputs` (name -> tensor).

    Equal for two graphs that compute the same from the same inputs, node by node, constants included; names of nodes
    and functions and TensorFlow's private attributes are left out.
    """
    functions = {function.signature.name: function for function in graph.library.function}
    known: dict[str, bytes] = {}

    def body(nodes: Sequence[Any], arguments: Sequence[str], results: Iterable[tuple[str, str]]) -> bytes:
        place = {name: f"argument {i}" for i, name in enumerate(arguments)}
        place |= {node.name: f"node {i}" for i, node in enumerate(nodes) if node.name not in place}

        def where(tensor: str) -> str:
            name, colon, rest = tensor.removeprefix("^").partition(":")
            return ("^" if tensor[0] == "^" else "") + place[name] + colon + rest

        parts = [*map(repr, (len(arguments), [(name, where(tensor)) for name, tensor in results]))]
        for node in nodes:
            parts += [node.op if node.op not in functions else called(node.op).hex(), node.device]
            parts += [place[node.name], *map(where, node.input)]
            for key in sorted(node.attr):
                if not key.startswith("_"):
                    parts += [key, attribute(node.attr[key])]
        return hashlib.sha256("\0".join(parts).encode()).digest()

    def attribute(value: Any) -> str:
        if value.WhichOneof("value") == "func":
            return called(value.func.name).hex()
        if value.list.func:
            return " ".join(called(each.name).hex() for each in value.list.func)
        return str(value.SerializeToString(deterministic=True).hex())

    def called(name: str) -> bytes:
        if name not in known:
            function = functions[name]
            arguments = [argument.name for argument in function.signature.input_arg]
            results = [(out.name, function.ret[out.name]) for out in function.signature.output_arg]
            numbered = [(str(i), tensor) for i, (_, tensor) in enumerate(results)]
            known[name] = body(function.node_def, arguments, numbered)
        return known[name]

    return body(graph.node, inputs, outputs.items()).hex()
