"""DIN's local activation unit as an ONNX function, written by hand.

N candidates and T behaviours make N T pairs. Exporters give each pair a row of 4D inputs; here no
product of a pair is ever built, because ``(q*k) Wp = q (diag(k) Wp)``: each row of the shorter side
(own) gets the matrix ``diag(own) Wp + W_other``, by which all rows of the longer one (other) are
multiplied; the bias is one more row. An outer product in the unit only changes that matrix: it is
``own W + W_other`` then, D^2 multiply-adds more per neuron and row of own. The work is cut into
chunks of own rows, about `CHUNK` pairs each, so that what passes between the layers stays in the
second-level cache. Inside a chunk a neuron is a row and a pair a column: everything is 2-D, so that
a layer and its activation are one kernel, and a neuron's parameters are one number for a whole row.
docs/performance.md has the figures of each step.
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import FunctionProto, parser
from torch import Tensor, nn

from model.din import LocalActivationUnit
from model.layers import PReLU
from training.fold import FoldedDice, fold

DOMAIN = "dinserve"
NAME = "LocalActivationUnit"
CHUNK = 2000
"""Pairs of a chunk: 80 hidden values of each are 640 kB."""


class UnitNode(nn.Module):
    """Stands in for a `LocalActivationUnit` while its network is exported.

    ``grid`` becomes one node that calls the function of `function`; the folded weights are the
    node's inputs.
    """

    def __init__(self, unit: LocalActivationUnit) -> None:
        super().__init__()
        layers: list[Any] = list(fold([unit.first, unit.first_activation, *unit.rest]))
        self.kinds = [*layers[1::2], nn.Identity()]
        self.names: list[str] = []
        for at, (linear, kind) in enumerate(zip(layers[::2], self.kinds, strict=True)):
            tensors = {"w": linear.weight.detach()}
            if at == 0:
                tensors = dict(zip(("wq", "wk", "wp"), unit.split(tensors["w"]), strict=True))
                self.outer = tensors["wp"].dim() == 3
            vectors = {
                "b": linear.bias,
                **dict(kind.named_parameters()),
                **dict(kind.named_buffers()),
            }
            tensors |= {name: vector.detach()[:, None] for name, vector in vectors.items()}
            for name, tensor in tensors.items():
                self.register_buffer(f"{name}{at}", tensor.float())
                self.names.append(f"{name}{at}")

    def grid(self, q: Tensor, k: Tensor) -> Tensor:
        """Weights (U, N, L) of candidates q (U, N, D) and behaviours k (U, L, D)."""
        found: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NAME}",
            (q, k, *(getattr(self, name) for name in self.names)),
            dtype=q.dtype,
            shape=(q.shape[0], q.shape[1], k.shape[1]),
            version=1,
        )
        return found

    def function(self, opset: int) -> FunctionProto:
        """What the node calls."""
        rows, products = _OUTER if self.outer else _PRODUCT
        layers = [products, *(_layer(at, kind) for at, kind in enumerate(self.kinds))]
        text = _FUNCTION % {
            "opset": opset,
            "inputs": ", ".join(["q", "k", *self.names]),
            "chunk": CHUNK,
            "rows": rows,
            "layers": "\n        ".join(layers),
            "last": len(self.kinds) - 1,
        }
        found: FunctionProto = parser.parse_function(text)
        return found


def _layer(at: int, kind: nn.Module) -> str:
    """From x of the layer before to its own: a row per neuron, a column per pair."""
    if at == 0:
        lines = [
            "weights = Add (products, w_other_rows)",
            "biases = Gemm <transB = 1> (w_own, chunk, b0)",
            "bias_column = Unsqueeze (biases, two)",
            "matrices = Concat <axis = 2> (weights, bias_column)",
            "flat = Reshape (matrices, flat_shape)",
            "s0 = Gemm (flat, columns)",
        ]
    else:
        lines = [f"s{at} = Gemm (w{at}, x{at - 1}, b{at})"]
    shape = "Reshape ({}, neuron_rows)" if at == 0 else "Identity ({})"
    match kind:
        case nn.Identity():
            lines += [f"x{at} = {shape.format(f's{at}')}"]
        case nn.Sigmoid() | nn.ReLU():  # right after the Gemm, so that they become one kernel
            name = "Sigmoid" if isinstance(kind, nn.Sigmoid) else "Relu"
            lines += [f"a{at} = {name} (s{at})", f"x{at} = {shape.format(f'a{at}')}"]
        case PReLU():
            lines += [f"z{at} = {shape.format(f's{at}')}", f"x{at} = PRelu (z{at}, alpha{at})"]
        case FoldedDice():
            lines += [
                f"z{at} = {shape.format(f's{at}')}",
                f"p{at} = Sigmoid (z{at})",
                f"pg{at} = Add (p{at}, g{at})",
                f"zc{at} = Add (z{at}, c{at})",
                f"x{at} = Mul (zc{at}, pg{at})",
            ]
        case _:
            raise ValueError(f"attention: no graph for {type(kind).__name__}")
    return "\n        ".join(lines)


# What the other side's rows are multiplied by for each row of own, without its own weights: neurons
# by rows by D. Of an outer product the weights (H, D, D) are by place in q and in k.
_PRODUCT = "wp_rows = Unsqueeze (wp0, one)", "products = Mul (wp_rows, chunk)"
_OUTER = (
    """wp_rows = If (by_behaviour) <
    then_branch = from_behaviour () => (wp_b) { wp_b = Transpose <perm = [0, 2, 1]> (wp0) },
    else_branch = from_candidate () => (wp_c) { wp_c = Identity (wp0) }
  >""",
    "products = MatMul (chunk, wp_rows)",
)

_FUNCTION = """
<domain: "dinserve", opset_import: ["": %(opset)d]>
LocalActivationUnit (%(inputs)s) => (weight)
{
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
  minus = Constant <value_ints = [-1]> ()
  pairs = Constant <value_ints = [%(chunk)d]> ()
  yes = Constant <value = bool {1}> ()
  first = Constant <value_int = 0> ()

  candidates = Shape <start = 1, end = 2> (q)
  behaviours = Shape <start = 1, end = 2> (k)
  more = Greater (candidates, behaviours)
  by_behaviour = Squeeze (more)
  own, other, w_own, w_other = If (by_behaviour) <
    then_branch = own_behaviours () => (own_b, other_b, w_own_b, w_other_b) {
      own_b = Identity (k)
      other_b = Identity (q)
      w_own_b = Identity (wk0)
      w_other_b = Identity (wq0)
    },
    else_branch = own_candidates () => (own_c, other_c, w_own_c, w_other_c) {
      own_c = Identity (q)
      other_c = Identity (k)
      w_own_c = Identity (wq0)
      w_other_c = Identity (wk0)
    }
  >
  rows_of_own = Shape <start = 1, end = 2> (own)
  rows_of_other = Shape <start = 1, end = 2> (other)
  wide = Div (pairs, rows_of_other)
  each = Max (wide, one)
  almost = Sub (each, one)
  above = Add (rows_of_own, almost)
  rounds = Div (above, each)
  chunks = Squeeze (rounds)

  ones_shape = Shape <start = 0, end = 2> (other)
  ones_rows = Concat <axis = 0> (ones_shape, one)
  ones = ConstantOfShape <value = float[1] {1}> (ones_rows)
  other_and_one = Concat <axis = 2> (other, ones)
  columns_of_users = Transpose <perm = [0, 2, 1]> (other_and_one)
  %(rows)s
  w_other_rows = Unsqueeze (w_other, one)
  neurons = Shape <start = 0, end = 1> (wp0)
  width = Shape <start = 1, end = 2> (columns_of_users)
  neuron_rows = Concat <axis = 0> (neurons, minus)
  flat_shape = Concat <axis = 0> (minus, width)
  grid_shape = Concat <axis = 0> (minus, rows_of_other)
  nothing = SequenceEmpty <dtype = 1> ()

  user_axis = Shape <start = 0, end = 1> (q)
  users = Squeeze (user_axis)
  across = Loop (users, yes) <body = user_body (int64 user, bool going) => (bool on, of_user) {
    on = Identity (going)
    own_of_user = Gather <axis = 0> (own, user)
    columns = Gather <axis = 0> (columns_of_users, user)
    parts = Loop (chunks, yes, nothing) <body = chunk_body
        (int64 at, bool going_on, seq(float[A, B]) before)
        => (bool next, seq(float[A, B]) after) {
        next = Identity (going_on)
        begin = Mul (at, each)
        end = Add (begin, each)
        chunk = Slice (own_of_user, begin, end, zero)
        %(layers)s
        of_chunk = Reshape (x%(last)d, grid_shape)
        after = SequenceInsert (before, of_chunk)
    }>
    of_user = ConcatFromSequence <axis = 0> (parts)
  }>
  weight = If (by_behaviour) <
    then_branch = turn () => (turned) { turned = Transpose <perm = [0, 2, 1]> (across) },
    else_branch = keep () => (kept) { kept = Identity (across) }
  >
}
"""
