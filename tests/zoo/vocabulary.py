"""The judge's vocabulary: the ids of causes and of patterns, as they stand in its JSON."""

CAUSES_BY_OP = {
    "embedding": "embedding-id-shifted embedding-scaled embedding-wrong-row",
    "rms_norm": (
        "norm-eps norm-eps-outside-root norm-no-weight norm-one-plus-weight norm-other-weight "
        "norm-mean-subtracted norm-whole-row norm-skipped norm-twice norm-low-precision-statistics norm-count "
        "norm-no-mean norm-wrong-input"
    ),
    "linear": (
        "linear-transposed linear-reinterpreted linear-rows-permuted linear-other-layer linear-other-weight "
        "linear-bias linear-weight-rounded linear-shard-missing linear-shard-doubled linear-shard-order "
        "linear-input-slices linear-doubled linear-wrong-input linear-tie"
    ),
    "rope": (
        "rope-interleaved rope-direction rope-theta rope-position-offset rope-position-zero rope-position-restarted "
        "rope-position-other rope-scaling rope-skipped rope-twice rope-before-norm rope-tables-rounded rope-partial "
        "rope-magnitude rope-frequencies rope-wrong-input"
    ),
    "attention": (
        "attention-no-mask attention-mask-shifted attention-scale attention-heads-tiled attention-unrotated-k "
        "attention-unrotated-q attention-stale-cache attention-window attention-softmax-overflow "
        "attention-other-sequence attention-head-order attention-past-ignored attention-value attention-wrong-input "
        "attention-softcapped"
    ),
    "residual": (
        "residual-missing residual-doubled residual-branch-doubled residual-branch-missing residual-after-norm "
        "residual-other"
    ),
    "swiglu": (
        "swiglu-gelu swiglu-gelu-tanh swiglu-relu swiglu-sigmoid swiglu-swapped swiglu-no-product "
        "swiglu-no-activation swiglu-sum swiglu-quick-gelu swiglu-wrong-input"
    ),
    "any": (
        "values-scaled values-permuted values-zero values-clamped values-rounded values-overflow values-nan rows-stale "
        "rows-overlapping op-skipped op-twice noise shape"
    ),
}
CAUSES = frozenset(cause for causes in CAUSES_BY_OP.values() for cause in causes.split())

ALL_PATTERNS = (
    "exact-at-position-0 grows-with-position from-position-on last-token-only first-token-only one-row some-heads "
    "some-channels channel-block one-element some-layers all-layers decode-only prefill-only later-chunk-only "
    "one-sequence constant-ratio constant-offset permuted rows-equal-another-row equal-to-another-layer "
    "equal-to-another-step zeros saturated coarse-grid non-finite ratio-per-row every-nth-row first-rows-right noise "
    "everywhere scattered"
)
PATTERNS = frozenset(ALL_PATTERNS.split())
