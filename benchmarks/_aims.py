"""The aim of every headline."""

from __future__ import annotations

AT_MOST = {
    "noise_step_p64_vs_iid": 2.5,
    "setup_error_vs_optimum": 1.08,
    "setup_time_vs_optimum": 1e-4,
    "dp_step_p16_vs_opacus": 1.15,
    "step_log4_vs_eager": 1.6,
    "step_recompute_vs_eager": 1.3,
    "step_default_vs_plain": 2.6,
    "step_every4_vs_plain": 1.4,
    "step_last_layer_vs_plain": 1.5,
    "spectral_overhead": 1.25,
    "step_weighted_vs_plain": 1.15,
    "scorer_peak_mib": 2048.0,
    "rerank_5000_seconds": 1.0,
    "import_beyond_lightning_seconds": 2.5,
}
AT_LEAST = {
    "bytes_eager_vs_log4": 6.2,
    "vectorized_vs_trainer_per_client": 5.0,
    "vectorized_vs_loop": 2.0,
    "auto_vs_loop_cnn": 1.0,
    "transform_speedup_vs_ddim40": 3.5,
    "scorer_speedup_vs_loop": 30.0,
}


def verdict(key: str, value: float) -> tuple[str, str]:
    """The aim of a headline in words, and whether a value meets it; both empty where there is no aim."""
    if key in AT_MOST:
        return f"≤ {AT_MOST[key]:g}", "met" if value <= AT_MOST[key] else "missed"
    if key in AT_LEAST:
        return f"≥ {AT_LEAST[key]:g}", "met" if value >= AT_LEAST[key] else "missed"
    return "", ""
