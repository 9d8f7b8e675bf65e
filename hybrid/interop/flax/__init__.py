"""Each sublayer and whole models as modules of flax.linen and flax.nnx.

    from hybrid.interop.flax import linen_sublayer

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + linen_sublayer("M", d_model=64)(nn.RMSNorm()(x))

The parameters are those of the functional form, under the same names: `params` of linen, `nnx.Param` of nnx. Leaves
that are not trained (Aux.updates changes them) stand apart, as the collection `untrained` and as `Untrained` variables.
"""

from hybrid.interop.flax.linen import LinenModel, LinenSublayer, linen_model, linen_sublayer, linen_variables
from hybrid.interop.flax.nnx import NnxModel, NnxSublayer, Untrained, nnx_model, nnx_sublayer

__all__ = [
    "LinenModel",
    "LinenSublayer",
    "NnxModel",
    "NnxSublayer",
    "Untrained",
    "linen_model",
    "linen_sublayer",
    "linen_variables",
    "nnx_model",
    "nnx_sublayer",
]
