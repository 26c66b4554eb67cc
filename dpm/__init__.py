"""Diffusion probabilistic models as Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli introduced them (ICML 2015).

    import dpm, torch

    model = dpm.load_model("heartbeat", "best")
    q = model.forward_process()
    x0 = dpm.sample(model.p, q, torch.zeros(16, 20), torch.Generator().manual_seed(0))

The names below are imported when they are first used, so that `import dpm` is quick.
"""

from importlib import import_module

_HOMES = {
    "adapters": "PretrainedReverse",
    "bound": "bound_loss evaluate evaluate_subsampled simple_loss step_kl",
    "errors": "UserError",
    "evaluation": "evaluate_experiment",
    "experiments.registry": "EXPERIMENTS build_model get_experiment load_model",
    "forward": "AbsorbingForward BernoulliForward ForwardProcess GaussianForward",
    "ideal": "IdealMixtureReverse IdealReverse best_schedule enumerate_ideal_K ideal_K",
    "importance": "importance_estimate log_weights",
    "pipelines": "load_pipeline",
    "posterior": "BernoulliLikelihood GaussianLikelihood GradientGuidance sample_posterior",
    "reverse": "BitX0Prediction DiffusionModel EpsPrediction KernelPerturbation LogitPrediction "
    "VPrediction X0Prediction sample sample_trajectory",
    "schedules": "FixedSchedule LearnedSchedule linear_alpha_bar log_snr_linear",
    "scoring": "Levels score_pictures",
    "training": "TrainState train",
    "units": "mean_and_stderr to_bits",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dpm' has no attribute {name!r}")
    return getattr(import_module(f"dpm.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
