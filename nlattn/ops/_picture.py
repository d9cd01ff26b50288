"""Pictures as callers have them: grey or coloured, channels anywhere, floats or integer levels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Array, Floats

ABSENT = object()


class Picture:
    """A checked picture, its channels last, in floating point; and the way back."""

    def __init__(
        self,
        op: str,
        image: object,
        *,
        channel_axis: int | None = -1,
        data_range: float | None = None,
        nonfinite: Nonfinite = "raise",
        beside: Mapping[str, object],
    ):
        self.levels: np.dtype | None = None
        self.unit = 1.0
        """What sigma and h must be multiplied by."""
        self._axis = channel_axis
        given = self._floating(op, image, data_range)
        arrays = {"image": (self._channels_last(op, "image", given), "H W e")}
        for name, x in beside.items():
            if x is not ABSENT:
                like = _check.array(op, name, x)
                arrays[name] = (self._channels_last(op, name, like), "H W e")
        self.fit = _check.fit(op, arrays, nonfinite=nonfinite)

    def restored(self, result: Floats) -> Floats:
        """Folded (batch, H, W, C) as the image was given."""
        out = self.fit.unfold(result)
        if self.levels is not None:
            most = np.iinfo(self.levels).max
            out = np.rint(np.clip(out, 0, most)).astype(self.levels)
        if self._axis is None:
            return out[..., 0]
        return out if self._axis == -1 else np.moveaxis(out, -1, self._axis)

    def _floating(self, op: str, image: object, data_range: float | None) -> Array:
        kind = getattr(image, "dtype", None)
        kind = _check.native_of(kind) if isinstance(kind, np.dtype) else None
        if kind not in (np.uint8, np.uint16) or isinstance(image, np.ma.MaskedArray):
            if data_range is not None:
                text = "is for pictures of uint8 or uint16; floats are measured as sigma is"
                _check.fail(op, f"data_range={data_range}", text)
            return _check.array(op, "image", image)
        most = np.iinfo(kind).max
        if data_range is None:
            text = (
                f"is {kind} and its range is not stated; data_range={most} says that sigma and h "
                "are in levels, data_range=1 that they are fractions of the range"
            )
            _check.fail(op, "image", text)
        self.levels = np.dtype(kind)
        self.unit = most / _check.number(op, "data_range", data_range, positive=True)
        return np.asarray(image).astype(np.float32)

    def _channels_last(self, op: str, name: str, x: Array) -> Floats:
        """A picture of two axes is grey, whatever is said of channels."""
        if x.ndim == 2:
            self._axis = None
        if self._axis is None:
            if x.ndim != 2:
                text = f"has shape {x.shape}, expected (H, W) with channel_axis=None"
                _check.fail(op, name, f"{text}; give a stack a channel axis, image[..., None]")
            return x[:, :, None]
        axis = _check.integer(op, "channel_axis", self._axis)
        if axis == -1 and x.ndim > 2 and _check.channels_first(x.shape):
            text = f"has shape {x.shape}, expected channels last"
            _check.fail(op, name, f"{text}; channel_axis={x.ndim - 3} says that they are first")
        if axis == -1 or x.ndim < 2:
            return x
        if not -x.ndim <= axis < x.ndim:
            _check.fail(op, f"channel_axis={axis}", f"is outside the {x.ndim} axes of {name}")
        return np.moveaxis(x, axis, -1)
