"""A network as an ONNX graph: its parts as PyTorch exports them, and the loop around them in ONNX's own notation.

    image (B, H, W, 3) uint8 RGB, steps () int64  ->  ids (B, H, W) uint8, used (B,) int64

Inputs that have a default, which ONNX calls initialisers that can be overridden, ask for more:

    tolerance () float32 = 0          stop once a step changed the class of a smaller share of the predictions
    size (2,) int64 = (0, 0)          height and width of the answer; where 0, those of the image
    with_probability () bool = false  give probability (B, H, W) float32 of the chosen class, which is empty otherwise
    with_trail () bool = false        give trail (S, B, H, W) uint8, the classes after every step, empty otherwise
    hidden_before, logits_before      go on from `hidden` and `logits` of another image; empty for a fresh start

A network of S cores, or of a fuse for each step, computes its S steps whatever `steps` asks for, and has no tolerance.
The state to go on from is there where it was asked for: OpenVINO cannot read a file that has it.

Where a logit of any step is not finite, the ids and the trail of that picture are 255, which is no class, and its
probability is NaN.

Legend: B batch, S steps, K classes, F feature channels, H x W image, h x w padded feature map (of logits h' x w', of
what guides them h'' x w'').
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, parser
from torch import Tensor, nn
from torch.export import Dim

from trailseg.errors import OptionError
from trailseg.labels import IGNORE
from trailseg.networks.recurrence import Recurrence, State
from trailseg.networks.stems import Context

OPSET = 18

_OWN = """
    own = Shape <start = 1, end = 3> (image)
"""

# The size of the answer, and how much of the feature map lies on the image.
_SIZES = """
    unset = Equal (size, zeros)
    to = Where (unset, own, size)
    rounded = Add (own, scale_less_one)
    features = Div (rounded, scale)
"""

_BEFORE_LOOP = """
    cropped_0 = Slice (logits_0, zeros, features, plane)
    ids_0 = ArgMax <axis = 1, keepdims = 0> (cropped_0)
    further = Sub (steps, one)
    batch = Shape <start = 0, end = 1> (image)
    open_0 = Expand (yes, batch)
    used_0 = Expand (one, batch)
"""

# After a step: images that are done keep what they have; the loop ends when all are.
_AFTER_STEP = """
    alive = Unsqueeze (open_old, beside)
    hidden_next = Where (alive, hidden_new, hidden_old)
    logits_next = Where (alive, logits_new, logits_old)
    logits_cropped = Slice (logits_next, zeros, features, plane)
    ids_next = ArgMax <axis = 1, keepdims = 0> (logits_cropped)
    same = Equal (ids_next, ids_old)
    changed = Not (same)
    changed_count = Cast <to = 1> (changed)
    changed_share = ReduceMean <keepdims = 0> (changed_count, ids_plane)
    settled = Less (changed_share, tolerance)
    unsettled = Not (settled)
    open_next = And (open_old, unsettled)
    taken = Cast <to = 7> (open_old)
    used_next = Add (used_old, taken)
    open_count = Cast <to = 7> (open_next)
    most_open = ReduceMax <keepdims = 0> (open_count)
    go_on = Cast <to = 9> (most_open)
"""

_AFTER_LOOP = """
    cropped = Slice (logits, zeros, features, plane)
    trail_first = Unsqueeze (cropped_0, first_axis)
    later_count = Shape <start = 0, end = 1> (logits_later)
    later_rest = Shape (cropped_0)
    later_shape = Concat <axis = 0> (later_count, later_rest)
    trail_later = Reshape <allowzero = 1> (logits_later, later_shape)
    trail_logits = Concat <axis = 0> (trail_first, trail_later)
"""

# Where the steps do not repeat, all are computed: every (S, B, K, h, w).
_AFTER_STACK = """
    step_count = Reshape (steps, one)
    asked_for = Slice (every, first_axis, step_count, first_axis)
    trail_logits = Slice (asked_for, zeros, features, trail_plane)
    cropped = Gather <axis = 0> (trail_logits, last)
    batch = Shape <start = 0, end = 1> (image)
    used = Expand (step_count, batch)
"""

# From the cropped logits of the last step to the answer, where those of all steps are sound, that is finite. The last
# feature may reach beyond the image; so does what is then cut off. `Recurrence.upsample` is the same in PyTorch.
_ANSWER = """
    magnitude = Abs (trail_logits)
    finite = LessOrEqual (magnitude, largest)
    finite_count = Cast <to = 6> (finite)
    fewest_finite = ReduceMin <keepdims = 0> (finite_count, all_but_batch)
    all_finite = Cast <to = 9> (fewest_finite)
    sound = Unsqueeze (all_finite, ids_plane)
    features_reach = Mul (features, scale)
    scaled_reach = Mul (features_reach, to)
    own_less_one = Sub (own, one)
    rounded_reach = Add (scaled_reach, own_less_one)
    reach = Div (rounded_reach, own)
    front = Shape <start = 0, end = 2> (cropped)
    sizes = Concat <axis = 0> (front, reach)
    beyond = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (cropped, , , sizes)
    sized = Slice (beyond, zeros, to, plane)
    ids_long = ArgMax <axis = 1, keepdims = 0> (sized)
    ids_short = Cast <to = 2> (ids_long)
    ids = Where (sound, ids_short, no_class)
    probability = If (with_probability) <
        then_branch = given () => (float[B, H, W] probability_full) {
            shares = Softmax <axis = 1> (sized)
            highest = ReduceMax <keepdims = 0> (shares, class_axis)
            probability_full = Where (sound, highest, not_a_number)
        },
        else_branch = spared () => (float[B, H, W] probability_none) {
            probability_none = ConstantOfShape <value = float[1] {0.0}> (none_of_three)
        }
    >
"""

_TRAIL = """
    trail = If (with_trail) <
        then_branch = given () => (uint8[S, B, H, W] trail_full) {
            trail_front = Shape <start = 0, end = 2> (trail_logits)
            trail_rest = Shape <start = 2, end = 5> (trail_logits)
            flat_shape = Concat <axis = 0> (minus_one, trail_rest)
            flat = Reshape (trail_logits, flat_shape)
            flat_front = Shape <start = 0, end = 2> (flat)
            flat_sizes = Concat <axis = 0> (flat_front, reach)
            flat_beyond = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">
                (flat, , , flat_sizes)
            flat_sized = Slice (flat_beyond, zeros, to, plane)
            flat_long = ArgMax <axis = 1, keepdims = 0> (flat_sized)
            flat_ids = Cast <to = 2> (flat_long)
            trail_shape = Concat <axis = 0> (trail_front, to)
            trail_ids = Reshape (flat_ids, trail_shape)
            trail_full = Where (sound, trail_ids, no_class)
        },
        else_branch = spared () => (uint8[S, B, H, W] trail_none) {
            trail_none = ConstantOfShape <value = uint8[1] {0}> (none_of_four)
        }
    >
"""

_CONSTANTS: dict[str, Any] = {
    "zeros": [0, 0],
    "one": [1],
    "minus_one": [-1],
    "yes": [True],
    "plane": [2, 3],  # of (B, K, h, w)
    "ids_plane": [1, 2],  # of (B, h, w)
    "trail_plane": [3, 4],  # of (S, B, K, h, w)
    "beside": [1, 2, 3],
    "first_axis": [0],
    "class_axis": [1],
    "last": -1,
    "all_but_batch": [0, 2, 3, 4],  # of (S, B, K, h, w)
    "largest": np.finfo(np.float32).max,
    "not_a_number": np.float32(np.nan),
    "no_class": np.uint8(IGNORE),
    "none_of_three": [0, 0, 0],
    "none_of_four": [0, 0, 0, 0],
}


def whole(network: Recurrence, *, steps: int, size: tuple[int, int], warm_start: bool) -> ModelProto:
    """The model described above, with or without a state to go on from.

    `steps` are those of a network whose steps do not repeat; `size` (H, W) is that of the weights of size-bound norms.
    """
    graph = _Graph(network, size)
    asked = [graph.image(), graph.value("steps", np.int64), graph.default("size", np.zeros(2, np.int64), 2)]
    asked += [graph.default(name, np.array(False)) for name in ("with_probability", "with_trail")]
    given = [
        graph.value("ids", np.uint8, "B", "H", "W"),
        graph.value("used", np.int64, "B"),
        graph.value("probability", np.float32, "B", "H", "W"),
        graph.value("trail", np.uint8, "S", "B", "H", "W"),
    ]
    nodes = [*graph.nodes(_OWN + _SIZES), *graph.part(_begin, ["image"], graph.seen)]
    if repeats(network):
        asked.append(graph.default("tolerance", np.array(0, np.float32)))
        asked += graph.states_before() if warm_start else []
        given += graph.maps("") if warm_start else []
        nodes += [*_first(graph, warm_start), *graph.nodes(_BEFORE_LOOP), _loop(graph), *graph.nodes(_AFTER_LOOP)]
    else:
        nodes += [*graph.part(partial(_every_step, steps=steps), graph.seen, ["every"]), *graph.nodes(_AFTER_STACK)]
    return graph.model([*nodes, *graph.nodes(_ANSWER + _TRAIL)], asked, given)


def parts(network: Recurrence, *, size: tuple[int, int]) -> dict[str, ModelProto]:
    """The same without a loop, for a caller that stops by the clock: `stem`, then `step` as often as there is time.

    stem: image, size -> ids, context, hidden, logits, own (2,) int64: the first answer. step: context, hidden, logits,
    own, size -> ids, hidden_next, logits_next: one step further. Of a guided network `guide` goes with the context.
    OptionError where the steps do not repeat.
    """
    if not repeats(network):
        raise OptionError("parts=true: the steps of this network differ from each other; it needs one or two cores")
    models = {}
    for name in ("stem", "step"):
        graph = _Graph(network, size)
        probability = graph.value("probability", np.float32, "B", "H", "W")
        common = [graph.default("size", np.zeros(2, np.int64), 2), graph.default("with_probability", np.array(False))]
        given = [graph.value("ids", np.uint8, "B", "H", "W"), probability]
        own = graph.value("own", np.int64, 2)
        if name == "stem":
            nodes = [*graph.nodes(_OWN + _SIZES), *graph.part(_begin, ["image"], graph.seen)]
            nodes += graph.part(_step_0, graph.seen, ["hidden", "logits"])
            asked, given = [graph.image(), *common], [*given, *map(graph.map, graph.seen), *graph.maps(""), own]
            last = "logits"
        else:
            nodes = graph.nodes(_SIZES)
            nodes += graph.part(_further_step, ["hidden", "logits", *graph.seen], ["hidden_next", "logits_next"])
            asked, given = [*map(graph.map, graph.seen), *graph.maps(""), own, *common], [*given, *graph.maps("_next")]
            last = "logits_next"
        crop = graph.nodes(f"""
            cropped = Slice ({last}, zeros, features, plane)
            trail_logits = Unsqueeze (cropped, first_axis)
        """)
        models[name] = graph.model([*nodes, *crop, *graph.nodes(_ANSWER)], asked, given)
    return models


def repeats(network: Recurrence) -> bool:
    """Whether all steps after the first are the same, so that a loop can take any number of them."""
    return network.max_steps is None and len(network.cores) <= 2 and len(network.fuses) <= 1


def _first(graph: "_Graph", warm_start: bool) -> list[NodeProto]:
    """Step 0, or where there is a state to go on from a further step, into `hidden_0` and `logits_0`."""
    if not warm_start:
        return graph.part(_step_0, graph.seen, ["hidden_0", "logits_0"])
    before, warm, cold = (["hidden" + end, "logits" + end] for end in ("_before", "_warm", "_cold"))
    branches = {
        "then_branch": helper.make_graph(
            graph.part(_further_step, [*before, *graph.seen], warm), "warm", [], graph.maps("_warm")
        ),
        "else_branch": helper.make_graph(graph.part(_step_0, graph.seen, cold), "cold", [], graph.maps("_cold")),
    }
    asked = graph.nodes("""
        before_count = Size (hidden_before)
        goes_on = Cast <to = 9> (before_count)
    """)
    return [*asked, helper.make_node("If", ["goes_on"], ["hidden_0", "logits_0"], **branches)]


def _begin(network: Recurrence, image: Tensor) -> tuple[Tensor, ...]:
    """The context of an image (B, H, W, 3) uint8, which is `_Graph.seen`."""
    return tuple(part for part in network.encode(image.permute(0, 3, 1, 2).float() / 255) if part is not None)


def _step_0(network: Recurrence, *seen: Tensor) -> State:
    return network.step(0, Context(*seen), None)


def _further_step(network: Recurrence, hidden: Tensor, logits: Tensor, *seen: Tensor) -> State:
    return network.step(1, Context(*seen), State(hidden, logits))


def _every_step(network: Recurrence, *seen: Tensor, steps: int) -> Tensor:
    """Logits (S, B, K, h, w)."""
    state, every = None, []
    for t in range(steps):
        state = network.step(t, Context(*seen), state)
        every.append(state.logits)
    return torch.stack(every)


def _loop(graph: "_Graph") -> NodeProto:
    """The steps after the first, while there is a picture that is not done."""
    step = graph.part(_further_step, ["hidden_old", "logits_old", *graph.seen], ["hidden_new", "logits_new"])
    carried = ["hidden", "logits", "ids", "open", "used"]

    def values(ending: str) -> list[ValueInfoProto]:
        ids = graph.value(f"ids{ending}", np.int64, "B", "h_own", "w_own")
        rest = [graph.value(f"open{ending}", np.bool_, "B"), graph.value(f"used{ending}", np.int64, "B")]
        return [*graph.maps(ending), ids, *rest]

    body = helper.make_graph(
        [*step, *graph.nodes(_AFTER_STEP)],
        "step",
        [graph.value("iteration", np.int64), graph.value("went_on", np.bool_), *values("_old")],
        [graph.value("go_on", np.bool_), *values("_next"), graph.map("logits_cropped", "h_own", "w_own")],
    )
    return helper.make_node(
        "Loop",
        ["further", "", *(f"{name}_0" for name in carried)],
        ["hidden", "logits", "ids_small", "open", "used", "logits_later"],
        body=body,
    )


class _Graph:
    """What the nodes of a model stand on: constants, weights, and the shapes of the network's maps."""

    def __init__(self, network: Recurrence, size: tuple[int, int]) -> None:
        self.network, self.size = network, size
        self.seen = ["context", "guide"] if network.guided > 1 else ["context"]
        self.initializers: dict[str, TensorProto] = {}
        # Exporting takes seconds, and a step may stand in two places.
        self._exported: dict[Callable[..., Any], GraphProto] = {}
        for name, value in {**_CONSTANTS, "scale": [network.scale], "scale_less_one": [network.scale - 1]}.items():
            self.constant(name, value)

    def constant(self, name: str, value: Any) -> None:
        """A constant that nodes call by its name."""
        self.initializers[name] = numpy_helper.from_array(np.array(value), name)

    def value(self, name: str, kind: type[np.generic], *shape: int | str) -> ValueInfoProto:
        """What a graph takes or gives."""
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)

    def default(self, name: str, value: np.ndarray, *shape: int | str) -> ValueInfoProto:
        """An input that need not be given."""
        self.initializers[name] = numpy_helper.from_array(value, name)
        return self.value(name, value.dtype.type, *shape)

    def image(self) -> ValueInfoProto:
        """The picture; of one size where the weights are."""
        return self.value("image", np.uint8, "B", *(self.size if self.network.bound_to else "HW"), 3)

    def map(self, name: str, height: str = "", width: str = "") -> ValueInfoProto:
        """A feature map, or logits where that is how the name begins."""
        return self.value(name, np.float32, "B", self._channels(name), *((height, width) if height else _sides(name)))

    def maps(self, ending: str) -> list[ValueInfoProto]:
        """The two maps of a state."""
        return [self.map(f"hidden{ending}"), self.map(f"logits{ending}")]

    def states_before(self) -> list[ValueInfoProto]:
        """The state to go on from: empty, unless given."""
        channels = {name: self._channels(name) for name in ("hidden_before", "logits_before")}
        return [self.default(n, np.zeros((0, c, 0, 0), np.float32), "b", c, *_sides(n)) for n, c in channels.items()]

    def nodes(self, text: str) -> list[NodeProto]:
        """The nodes of a text in ONNX's notation."""
        return list(parser.parse_graph(f"g () => () {{ {text} }}").node)

    def part(self, compute: Callable[..., Any], inputs: Sequence[str], outputs: Sequence[str]) -> list[NodeProto]:
        """The nodes of a part of the network, from these inputs to these outputs; its weights are kept once."""
        if compute not in self._exported:
            self._exported[compute] = _export(_Part(self.network, compute), self._examples(inputs))
        exported = GraphProto()
        exported.CopyFrom(self._exported[compute])
        names = dict(zip([v.name for v in [*exported.input, *exported.output]], [*inputs, *outputs], strict=True))
        for tensor in exported.initializer:  # weights bear their own names, which all parts share; constants do not
            name = tensor.name if "." in tensor.name else f"{outputs[-1]}/{tensor.name}"
            if self.initializers.get(name, tensor).raw_data != tensor.raw_data:
                name = f"further/{name}"  # into which the statistics of a norm were folded, those of the later steps
            names[tensor.name] = tensor.name = name
            known = self.initializers.setdefault(name, tensor)
            assert known.raw_data == tensor.raw_data, f"two weights are called {name}"
        for node in exported.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
            node.name = ""
            node.input[:] = [names.get(name, name and f"{outputs[-1]}/{name}") for name in node.input]
            node.output[:] = [names.get(name, name and f"{outputs[-1]}/{name}") for name in node.output]
        return list(exported.node)

    def model(
        self, nodes: Iterable[NodeProto], inputs: Iterable[ValueInfoProto], outputs: Iterable[ValueInfoProto]
    ) -> ModelProto:
        """The finished model, checked; of the initialisers those that are used."""
        inputs = list(inputs)
        graph = helper.make_graph(list(nodes), "trailseg", inputs, list(outputs))
        used = _names_used(graph) | {value.name for value in inputs}
        graph.initializer.extend(tensor for name, tensor in self.initializers.items() if name in used)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _channels(self, name: str) -> int:
        """The channels of a map, which its name tells: K of logits, the guide's, and F of others."""
        network = self.network
        outputs, features = next(network.head.parameters()).shape[:2]
        finer = network.stride // (network.scale * network.guided)
        return {"logits": outputs // finer**2, "guide": 9 * network.guided**2}.get(_kind(name), features)

    def _examples(self, inputs: Sequence[str]) -> list[tuple[Tensor, dict[int, Any]]]:
        """For each input a tensor to trace with, and which of its sides can have any length."""
        network, batch, examples = self.network, Dim("batch"), []
        for name in inputs:
            if name == "image":
                height, width = self.size if network.bound_to else (2 * network.multiple - 1, 3 * network.multiple - 1)
                sides = {} if network.bound_to else {1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
                examples.append((torch.zeros(2, height, width, 3, dtype=torch.uint8), {0: batch, **sides}))
            else:
                scales = {"logits": network.scale, "guide": network.scale * network.guided}
                scale = scales.get(_kind(name), network.stride)
                unit = network.multiple // scale
                height, width = [side // scale for side in network.bound_to or ()] or (2 * unit, 3 * unit)
                sides = {} if network.bound_to else {2: unit * Dim("h"), 3: unit * Dim("w")}
                examples.append((torch.zeros(2, self._channels(name), height, width), {0: batch, **sides}))
        return examples


def _sides(name: str) -> tuple[str, str]:
    """What the height and width of a map are called."""
    return {"logits": ("h'", "w'"), "guide": ("h''", "w''")}.get(_kind(name), ("h", "w"))


def _kind(name: str) -> str:
    """What a map is: logits of logits_next, say."""
    return name.split("_")[0]


class _Part(nn.Module):
    """A part of a network as a module of its own, which is what PyTorch exports."""

    def __init__(self, network: Recurrence, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.compute = network, compute

    def forward(self, *inputs: Tensor) -> Any:
        """What `compute` makes of the network and the inputs."""
        return self.compute(self.network, *inputs)


def _export(module: nn.Module, examples: Sequence[tuple[Tensor, dict[int, Any]]]) -> GraphProto:
    """The graph of a module, as PyTorch exports it, without a word."""
    chatty = logging.getLogger("torch.onnx")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                tuple(tensor for tensor, _ in examples),
                dynamic_shapes=(tuple(sides for _, sides in examples),),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        chatty.setLevel(level)
    assert program is not None
    return program.model_proto.graph


def _names_used(graph: GraphProto) -> set[str]:
    """The names of values that the nodes of a graph, and of the graphs inside it, take."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return {name for node in graph.node for name in node.input}.union(*map(_names_used, inner))
