"""ONNX Runtime: the Attention operator of opset 23, or of the opset that is asked for."""

from __future__ import annotations

import numpy as np

from nlattn._types import Array, JsonObject, Options, Result
from nlattn.conformance.backends.adapters import Band, Module, Tensor, allowed_pairs, four_axes
from nlattn.conformance.backends.backend import Unsupported, call

_TYPES = {"float64": "DOUBLE", "float32": "FLOAT", "float16": "FLOAT16"}


class Backend:
    """One node on the CPU; "onnxruntime:24" takes opset 24."""

    def __init__(self, opset: str = "23"):
        import onnx
        import onnxruntime

        self._onnx: Module = onnx
        self._runtime: Module = onnxruntime
        self._opset = int(opset)
        self.name = "onnxruntime" if opset == "23" else f"onnxruntime:{opset}"

    def capabilities(self) -> Options:
        """Attention alone, without gradients; NumPy has no bfloat16 to pass.

        Its CPU kernel stores the scores of 16-bit arrays in 16 bits.
        """
        own = {"operators": ["attention"], "gradients": False, "dtypes": list(_TYPES)}
        return {**own, "accumulate": "float16"}

    def run(self, op: str, arrays: dict[str, Array], options: JsonObject) -> Result:
        """Outputs."""
        return call(self._attention, op, arrays, options)

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        bias: Tensor = None,
        mask: Tensor = None,
        causal: bool = False,
        causal_offset: int | str = 0,
        window: Band = None,
        gqa: bool = False,
    ) -> Tensor:
        lead = q.shape[:-2] if gqa else np.broadcast_shapes(*(x.shape[:-2] for x in (q, k, v)))
        n, e = q.shape[-2], v.shape[-1]
        q, k, v = (np.ascontiguousarray(x) for x in four_axes(q, k, v, gqa))
        plain = causal and not causal_offset
        pairs = allowed_pairs(n, k.shape[-2], causal and not plain, causal_offset, window)
        if pairs is not None:
            mask = pairs if mask is None else mask & pairs
        if bias is not None:
            mask = bias if mask is None else np.where(mask, bias, q.dtype.type(-np.inf))
        attributes: JsonObject = {"is_causal": int(plain)}
        if scale is not None:
            attributes["scale"] = float(scale)
        if softcap is not None:
            attributes["softcap"] = float(softcap)
        feeds = {"Q": q, "K": k, "V": v}
        if mask is not None:
            feeds["attn_mask"] = mask.reshape(*((1,) * (4 - mask.ndim)), *mask.shape)
        return self._node(feeds, attributes).reshape(*lead, n, e)

    def _node(self, feeds: JsonObject, attributes: JsonObject) -> Tensor:
        helper, proto = self._onnx.helper, self._onnx.TensorProto

        def declared(name: str, x: Tensor) -> Tensor:
            kind = "BOOL" if x.dtype == bool else _TYPES[x.dtype.name]
            return helper.make_tensor_value_info(name, getattr(proto, kind), x.shape)

        result = helper.make_tensor_value_info(
            "Y", getattr(proto, _TYPES[feeds["Q"].dtype.name]), None
        )
        node = helper.make_node("Attention", list(feeds), ["Y"], **attributes)
        graph = helper.make_graph(
            [node], "attention", [declared(*x) for x in feeds.items()], [result]
        )
        opset = helper.make_opsetid("", self._opset)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=11)
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            session = self._runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            if "NOT_IMPLEMENTED" not in str(error):
                raise
            raise Unsupported("has no kernel of this dtype") from None
        return session.run(None, feeds)[0]
