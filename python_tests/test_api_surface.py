"""The public surface: what is exported, documented, and whose examples run."""

import doctest
import inspect
import re

import pytest
import torch

import vidkernels as vk

FUNCTIONS = {name: getattr(vk.functional, name) for name in vk.functional.__all__}
MODULES = {name: getattr(vk.nn, name) for name in vk.nn.__all__}
DOCUMENTED = {f"functional.{n}": f for n, f in FUNCTIONS.items()} | {f"nn.{n}": m for n, m in MODULES.items()}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_follows_the_template(name):
    text = inspect.getdoc(DOCUMENTED[name]) or ""
    headings = ("Args:", "Returns:", "Example:") if name.startswith("functional") else ("Args:", "Example:")
    for heading in headings:
        assert heading in text, f"vidkernels.{name}: no {heading!r} in the docstring"
    if inspect.isfunction(DOCUMENTED[name]):
        for heading in ("Raises:", "Backends:", "Source:"):
            assert heading in text, f"vidkernels.{name}: no {heading!r} in the docstring"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples_run(name):
    item = DOCUMENTED[name]
    torch.manual_seed(0)
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    names = {"vk": vk, "torch": torch, item.__name__: item}
    examples = 0
    for test in finder.find(item, globs=names):
        examples += runner.run(test).attempted
    assert examples > 0
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if inspect.isfunction(f)])
def test_every_function_can_be_forced(name):
    """A function that calls no op of ours says so: its only backend is the reference, torch itself."""
    parameter = inspect.signature(FUNCTIONS[name]).parameters.get("backend")
    if parameter is None:
        backends = inspect.getdoc(FUNCTIONS[name]).split("Backends:")[1].split("Deterministic")[0]
        assert {"reference", "torch", "scipy"} & set(re.findall(r"\w+", backends)[:2]), (
            f"{name} has no backend argument"
        )
        return
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert parameter.default is None


def test_surface():
    """The list of public names: change it together with the CHANGELOG."""
    assert set(vk.functional.__all__) == {
        "FiniteScalarQuantized",
        "HierarchicalKMeansResult",
        "Integers",
        "KMeansResult",
        "MergePlan",
        "QuantizedRate",
        "TokenMask",
        "VectorQuantized",
        "adam_step",
        "alpha_from_density",
        "arap_loss",
        "banzhaf_interaction",
        "bipartite_soft_matching",
        "block_mask",
        "bone_transforms",
        "code_sums",
        "composite",
        "contract",
        "conv_int8",
        "decode_integers",
        "decode_splats",
        "decode_tail",
        "dirichlet_kl",
        "dirichlet_sample",
        "dpc_knn_cluster",
        "ema_codebook",
        "embed_visible_tubes",
        "fake_quantize_rate",
        "farthest_points",
        "fixed_point",
        "flow_warp_aggregate",
        "folded_bias",
        "fourier_layer",
        "frame_loss",
        "fsq",
        "fsq_codes",
        "fuse_tokens",
        "gather_tokens",
        "hierarchical_assign",
        "hierarchical_kmeans",
        "importance_samples",
        "inverse_skinning",
        "isect_offset_encode",
        "isect_tiles",
        "kmeans",
        "kmeans_plus_plus",
        "knn_graph",
        "label_loss",
        "late_interaction_banzhaf",
        "late_interaction_value",
        "linear_assignment",
        "masked_patch_loss",
        "masked_weight",
        "maximal_marginal_relevance",
        "maximum_coverage",
        "merge_samples",
        "merge_tokens",
        "minibatch_kmeans",
        "motion_eval",
        "mpi_homographies",
        "multi_tensor_adam",
        "nearest",
        "nearest_code",
        "nearest_points",
        "newton_schulz",
        "perplexity",
        "photometric_loss",
        "pixel_rays",
        "pool_tokens",
        "project_gaussians",
        "proportional_attention",
        "prune_redundant_tokens",
        "random_mask",
        "rasterization",
        "render_mpi",
        "render_rays",
        "rendered_flow_loss",
        "running_cell_mask",
        "scale_shift_invariant_loss",
        "scatter_tokens",
        "score_mask",
        "sigma_loss",
        "sinkhorn",
        "sinkhorn_assign",
        "slice_spacetime",
        "spectral_multiply",
        "spherical_harmonics",
        "splat_2d",
        "straight_through",
        "stratified_samples",
        "swapped_prediction_loss",
        "temporal_grid",
        "temporal_shift",
        "token_roll",
        "top_k_frames",
        "top_k_mask",
        "top_k_selection",
        "tube_mask",
        "unmerge_tokens",
        "unproject_depth",
        "upsample_conv",
        "upsample_conv_loss",
        "vector_quantize",
        "warp_planes",
    }
    assert set(vk.nn.__all__) == {
        "BanzhafInteraction",
        "BlockMasking",
        "CameraODE",
        "CanonicalGaussianVideo",
        "DPCKNNMerging",
        "DensityControl",
        "DirichletCodebook",
        "DirichletFeature",
        "ExplicitGaussianVideo",
        "FSQ",
        "FourierLayer",
        "GaussianAdam",
        "GaussianImage",
        "GaussianVideo",
        "HierarchicalGaussianVideo",
        "HierarchicalKMeans",
        "IntegerDecoder",
        "IntegerLayer",
        "IntegerValues",
        "InverseLBS",
        "KMeans",
        "LayeredVolumeRenderer",
        "MPIRenderer",
        "MaskedPatchLoss",
        "MultiTensorAdam",
        "Muon",
        "NeRVBlock",
        "PointRayRenderer",
        "ProductVQ",
        "ProportionalAttention",
        "PrototypeHead",
        "QuantizedParameter",
        "RandomMasking",
        "Resampler",
        "ResidualVQ",
        "RunningCellMasking",
        "SigmaLoss",
        "SinkhornAssigner",
        "SubnetParameter",
        "SwappedPredictionLoss",
        "TemporalShift",
        "TokenFuser",
        "TokenLearner",
        "TokenMerging",
        "TokenRoll",
        "TubeMasking",
        "VectorQuantizer",
        "VisibleTubeEmbed",
        "VolumeRenderer",
        "fit_spreads",
        "integer_values",
        "quantize_decoder",
        "quantize_parameter",
        "quantize_weights",
        "quantized_parameters",
        "rate_bits",
        "set_quantization",
    }
    assert {"functional", "nn", "info", "backend", "codec", "data", "metrics", "models", "methods", "train"} <= set(
        vk.__all__
    )


def test_backend_context_forces_and_restores():
    from vidkernels import _backend

    tokens, index = torch.randn(1, 3, 2), torch.tensor([[0]], dtype=torch.int32)
    with vk.backend("reference"):
        assert _backend.forced == "reference"
        vk.functional.gather_tokens(tokens, index)
    assert _backend.forced is None
    with pytest.raises(ValueError, match="expected one of"), vk.backend("gpu"):
        pass
    with vk.backend("cuda"), pytest.raises(RuntimeError, match="asked for and cannot run"):
        vk.functional.gather_tokens(tokens, index)


def test_info_says_what_runs_and_why_not():
    facts = vk.info()
    assert facts["version"] == vk.__version__
    for name, backends in facts["ops"].items():
        assert set(backends) == {"reference", "cpu", "cuda", "triton", "simt", "simt_trace"}, name
        assert backends["reference"] is None
        if not torch.cuda.is_available():
            assert backends["cuda"]
