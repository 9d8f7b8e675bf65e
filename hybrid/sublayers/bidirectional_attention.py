"""`B`: self-attention that sees both ways, for encoders (Vaswani et al. 2017, section 3.1; Devlin et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid.sublayers.heads import HeadsConfig, check_heads, finish, heads_spec, project, reference, score_bias
from hybrid.sublayers.kind import Aux, Context, Kind, Traits

if TYPE_CHECKING:
    from hybrid.config import ModelConfig


@dataclass(frozen=True)
class BidirectionalAttentionConfig(HeadsConfig):
    """The fields that all kinds of attention share."""


def apply(config: ModelConfig, params: Mapping[str, Any], x: Any, context: Context) -> tuple[Any, Aux]:
    """x, y: (batch, length, d_model)."""
    from hybrid.ops.on_mesh import attention

    group = config.bidirectional_attention
    q, k, v = project(config, group, params, x, context.positions)
    mixed = attention(
        q, k, v, segment_ids=context.segment_ids, k_valid=context.padding, causal=False,
        scale=group.scale, softcap=group.softcap, bias=score_bias(config, context, causal=False), form=group.form,
    )  # fmt: skip
    return finish(params, x, mixed), Aux()


KIND = Kind(
    symbol="B",
    group="bidirectional_attention",
    config=BidirectionalAttentionConfig,
    traits=lambda config: Traits(causal=False, decodable=False, chunk_exact=False),
    spec=lambda config: heads_spec(config, config.bidirectional_attention),
    apply=apply,
    reference=lambda config, params, x, context: reference(
        config, config.bidirectional_attention, params, x, context, causal=False
    ),
    check=lambda config: check_heads(config, config.bidirectional_attention),
    counted={"form": "plain"},
)
