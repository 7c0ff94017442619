"""The share of a GPU's arithmetic, by hand."""

from __future__ import annotations

import pytest

from velocity.training.metrics import model_flops_utilisation


def test_utilisation_is_6_flop_a_parameter_and_token_over_the_peak_of_all_gpus():
    # 6 x 7e9 x 10000 tokens/s = 4.2e14 FLOP/s, of 2 x 9.89e14: 21.2 %
    found = model_flops_utilisation(7_000_000_000, 7_000_000_000, 10_000, "NVIDIA H100 80GB HBM3", 2)
    assert found == pytest.approx(4.2e14 / (2 * 989e12))


def test_frozen_parameters_have_no_gradients_of_their_own_to_compute():
    # 4 x 1e6 for all, 2 x 1e5 for those that are trained: 4.2e6 FLOP a token
    found = model_flops_utilisation(1_000_000, 100_000, 1000, "NVIDIA H100 80GB HBM3", 1)
    assert found == pytest.approx(4.2e9 / 989e12)


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("NVIDIA H200", 989e12)],
)
def test_a_gpu_is_known_by_its_name(gpu: str, peak: float):
    assert model_flops_utilisation(1_000_000, 1_000_000, 1000, gpu, 1) == pytest.approx(6e9 / peak)


def test_an_l40_is_not_taken_for_an_l4_which_has_two_thirds_of_its_peak():
    assert model_flops_utilisation(1_000_000, 1_000_000, 1000, "NVIDIA L40", 1) != pytest.approx(6e9 / 121e12)


@pytest.mark.parametrize("gpu", ["", "Tesla T4"])
def test_a_gpu_whose_peak_is_not_known_has_no_utilisation(gpu: str):
    assert model_flops_utilisation(1_000_000, 1_000_000, 1000, gpu, 1) is None
