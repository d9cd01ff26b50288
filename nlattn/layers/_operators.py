"""Operators as layers call them: of plain arrays, and of arrays that move."""

from __future__ import annotations

from nlattn.layers._dual import lifted, linear
from nlattn.ops import cross_scale, dense, efficient, forward_mode, permutohedral, refined
from nlattn.ops import enla as random
from nlattn.ops import nonlocal_mean as means
from nlattn.ops import qna as windows

attention = lifted(dense.attention, forward_mode.attention_jvp)
nonlocal_mean = lifted(means.nonlocal_mean, means.nonlocal_mean_jvp)
refined_self_attention = lifted(refined.refined_self_attention, refined.refined_self_attention_jvp)
efficient_attention = lifted(efficient.efficient_attention, efficient.efficient_attention_jvp)
enla = lifted(random.enla, random.enla_jvp)
enlca_loss = lifted(random.enlca_loss, random.enlca_loss_jvp)
permutohedral_attention = lifted(
    permutohedral.permutohedral_attention, permutohedral.permutohedral_attention_jvp
)
cross_scale_attention = lifted(
    cross_scale.cross_scale_attention, cross_scale.cross_scale_attention_jvp
)
qna = lifted(windows.qna, windows.qna_jvp)
downscale = linear(cross_scale.downscale)
extend = linear(cross_scale.extend)
