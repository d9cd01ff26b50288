"""Whole modules of the papers, their weights passed in as arrays under the published names.

Each takes channels-last images, ``layer(x, weights, ...) -> y``, and has exact gradients,
``layer_vjp(x, weights, dout, ...) -> (dx, dweights)``. `block_jvp` is the forward mode of all.
"""

from nlattn.layers._files import load_weights as load_weights
from nlattn.layers.cross_scale import cross_scale_block as cross_scale_block
from nlattn.layers.cross_scale import cross_scale_block_vjp as cross_scale_block_vjp
from nlattn.layers.cross_scale import inscale_block as inscale_block
from nlattn.layers.cross_scale import inscale_block_vjp as inscale_block_vjp
from nlattn.layers.cross_scale import multi_source_projection as multi_source_projection
from nlattn.layers.cross_scale import multi_source_projection_vjp as multi_source_projection_vjp
from nlattn.layers.cross_scale import sem_cell as sem_cell
from nlattn.layers.cross_scale import sem_cell_vjp as sem_cell_vjp
from nlattn.layers.efficient import efficient_attention_block as efficient_attention_block
from nlattn.layers.efficient import efficient_attention_block_vjp as efficient_attention_block_vjp
from nlattn.layers.enlca import enlca_block as enlca_block
from nlattn.layers.enlca import enlca_block_vjp as enlca_block_vjp
from nlattn.layers.forward_mode import block_jvp as block_jvp
from nlattn.layers.nonlocal_mean import nonlocal_block as nonlocal_block
from nlattn.layers.nonlocal_mean import nonlocal_block_map as nonlocal_block_map
from nlattn.layers.nonlocal_mean import nonlocal_block_vjp as nonlocal_block_vjp
from nlattn.layers.pam import pam_block as pam_block
from nlattn.layers.pam import pam_block_vjp as pam_block_vjp
from nlattn.layers.qna import qna_block as qna_block
from nlattn.layers.qna import qna_block_vjp as qna_block_vjp
from nlattn.layers.qna_upsample import qna_upsample_block as qna_upsample_block
from nlattn.layers.qna_upsample import qna_upsample_block_vjp as qna_upsample_block_vjp
from nlattn.layers.refined import refined_block as refined_block
from nlattn.layers.refined import refined_block_map as refined_block_map
from nlattn.layers.refined import refined_block_vjp as refined_block_vjp
from nlattn.layers.sagan import sagan_block as sagan_block
from nlattn.layers.sagan import sagan_block_map as sagan_block_map
from nlattn.layers.sagan import sagan_block_vjp as sagan_block_vjp
from nlattn.layers.window_attention import window_attention_block as window_attention_block
from nlattn.layers.window_attention import (
    window_attention_block_vjp as window_attention_block_vjp,
)
