"""Fewer tokens: merging, pruning, clustering and choosing them, and attention that counts them."""

from vidkernels.functional.tokens.attention import proportional_attention
from vidkernels.functional.tokens.banzhaf import banzhaf_interaction, late_interaction_banzhaf, late_interaction_value
from vidkernels.functional.tokens.density import dpc_knn_cluster
from vidkernels.functional.tokens.frames import top_k_frames, top_k_selection
from vidkernels.functional.tokens.learner import fuse_tokens, pool_tokens
from vidkernels.functional.tokens.merging import MergePlan, bipartite_soft_matching, merge_tokens, unmerge_tokens
from vidkernels.functional.tokens.redundancy import prune_redundant_tokens
from vidkernels.functional.tokens.roll import temporal_shift, token_roll
from vidkernels.functional.tokens.selection import maximal_marginal_relevance, maximum_coverage

__all__ = [
    "MergePlan",
    "banzhaf_interaction",
    "bipartite_soft_matching",
    "dpc_knn_cluster",
    "fuse_tokens",
    "late_interaction_banzhaf",
    "late_interaction_value",
    "maximal_marginal_relevance",
    "maximum_coverage",
    "merge_tokens",
    "pool_tokens",
    "proportional_attention",
    "prune_redundant_tokens",
    "temporal_shift",
    "token_roll",
    "top_k_frames",
    "top_k_selection",
    "unmerge_tokens",
]
