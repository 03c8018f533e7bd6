"""Recurrent layers as ONNX: GRU and LSTM are operators, DIEN's AUGRU is a function written by hand.

Each class stands in for a layer while its network is exported. The exporter's own translation of
the first two bakes the example's length into shapes behind them.
"""

from __future__ import annotations

import torch
from onnx import FunctionProto, parser
from torch import Tensor, nn

from model.dien import AUGRU
from training.unit import DOMAIN


class RecurrentNode(nn.Module):
    """Stands in for an `nn.GRU` or `nn.LSTM` of one layer in one direction, batch first."""

    w: Tensor
    r: Tensor
    b: Tensor

    def __init__(self, layer: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.operator = "GRU" if isinstance(layer, nn.GRU) else "LSTM"
        self.attributes = {"hidden_size": layer.hidden_size}
        order: tuple[int, ...] = (0, 3, 1, 2)  # ONNX has i, o, f, c where torch has i, f, g, o
        if self.operator == "GRU":
            self.attributes["linear_before_reset"] = 1
            order = (1, 0, 2)  # and z, r, h where torch has r, z, n

        def gates(name: str) -> Tensor:
            parts = getattr(layer, name).detach().chunk(len(order))
            return torch.cat([parts[at] for at in order])[None].float()

        self.register_buffer("w", gates("weight_ih_l0"))
        self.register_buffer("r", gates("weight_hh_l0"))
        self.register_buffer("b", torch.cat([gates("bias_ih_l0"), gates("bias_hh_l0")], 1))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """States (G, T, H) of x (G, T, D), from 0."""
        y = torch.onnx.ops.symbolic(
            self.operator,
            (x.transpose(0, 1), self.w, self.r, self.b),
            attrs=dict(self.attributes),
            dtype=x.dtype,
            shape=(x.shape[1], 1, x.shape[0], self.attributes["hidden_size"]),
        )
        return (y.squeeze(1).transpose(0, 1),)


class AUGRUNode(nn.Module):
    """Stands in for an `AUGRU`: all candidates of a user take a step side by side."""

    w: Tensor

    def __init__(self, layer: AUGRU) -> None:
        super().__init__()
        self.inputs = layer.inputs  # of use before the node
        self.register_buffer("w", layer.state.weight.detach().T.contiguous().float())

    def forward(self, given: Tensor, weight: Tensor) -> Tensor:
        """The last state (G, N, D), with attention (G, N, T); given (G, T, 3 D)."""
        found: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::AUGRU",
            (given, weight, self.w),
            dtype=given.dtype,
            shape=(*weight.shape[:2], self.w.shape[0]),
            version=1,
        )
        return found

    def function(self, opset: int) -> FunctionProto:
        """What the node calls."""
        found: FunctionProto = parser.parse_function(_AUGRU % {"opset": opset})
        return found


# given (G, T, 3 D) is u, r, n of each behaviour; attention (G, N, T); w (D, 3 D).
_AUGRU = """
<domain: "dinserve", opset_import: ["": %(opset)d]>
AUGRU (given, attention, w) => (last)
{
  candidate_axis = Constant <value_ints = [2]> ()
  minus = Constant <value_ints = [-1]> ()
  shape = Shape <start = 0, end = 2> (attention)
  width = Shape <start = 0, end = 1> (w)
  start_shape = Concat <axis = 0> (shape, width)
  start = ConstantOfShape <value = float[1] {0}> (start_shape)
  by_step = Transpose <perm = [1, 0, 2]> (given)
  of_user = Unsqueeze (by_step, candidate_axis)
  attention_by_step = Transpose <perm = [2, 0, 1]> (attention)
  paid = Unsqueeze (attention_by_step, minus)
  last = Scan <num_scan_inputs = 2, body = step (float[G, N, D] h, float[G, A, B] x,
      float[G, N, C] a) => (float[G, N, D] next) {
    hu_hr_hn = MatMul (h, w)
    hu, hr, hn = Split <axis = 2, num_outputs = 3> (hu_hr_hn)
    xu, xr, xn = Split <axis = 2, num_outputs = 3> (x)
    su = Add (xu, hu)
    open = Sigmoid (su)
    u = Mul (a, open)
    sr = Add (xr, hr)
    r = Sigmoid (sr)
    kept = Mul (r, hn)
    sn = Add (xn, kept)
    n = Tanh (sn)
    step_to = Sub (n, h)
    moved = Mul (u, step_to)
    next = Add (h, moved)
  }> (start, of_user, paid)
}
"""
