"""Fusions: one rule a file, found by its name. Each file has RULES, a list of onnxscript rewrite rules, most specific first.

A rule replaces a matched subgraph by one node of domain `bertc`, whose canonical body stands in `compiler/canonical.py`. The
operators, with their shapes (B batch, S length, T attended length, H width, h heads, d head size); `?` may be absent:

    FusedLinear(x [...,K], W [K,N], b [N]?) -> [...,N]
    FusedGelu(x [...,N]; form "erf" | "tanh" | "quick") -> [...,N]
    FusedBiasGelu(x [...,N], b [N]; form "erf" | "tanh" | "quick") -> [...,N]
    FusedSkipLayerNorm(x [B,S,H], skip [B,S,H], b [H]?, gamma [H], beta [H]?; epsilon) -> y [B,S,H], sum [B,S,H]?
    FusedSkipRmsNorm(x, skip, b?, gamma; epsilon) -> y, sum?
    FusedEmbeddings(ids [B,S], positions [1|B,S]?, types [B,S]?, word [V,H], position [P,H]?, type [Y,H]?, gamma, beta;
                    epsilon) -> [B,S,H]
    FusedScoreMask(attention_mask [B,S]; low) -> [B,1,1,S] float: 0 where it may be attended to, `low` elsewhere
    FusedSdpa(q [B,h,S,d], k_t [B,h,d,T], v [B,h,T,d], mask? broadcast to [B,h,S,T], added; scale) -> [B,h,S,d]
    FusedAttention(x [B,S,H], mask?, Wqkv [H,3*h*d], bqkv [3*h*d]?, Wo [h*d,N], bo [N]?; num_heads, scale) -> [B,S,N]
    FusedConv1dGelu(x [B,C,T], W, b?, gamma?, beta?; strides, pads, dilations, group, norm "none" | "group" | "layer", epsilon,
                    form) -> [B,C2,T2]
"""
