import pytest
import torch

from snapgen_deploy.models import euler, initial_noise, sigmas, time_features


def test_four_published_steps():
    assert sigmas(4, 3.0) == pytest.approx((1.0, 0.9, 0.75, 0.5, 0.0))


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_euler_is_exact_on_straight_paths(steps):
    """With v = noise - x0 constant, any number of steps ends at x0."""
    noise, x0 = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    got = euler(lambda x, sigma: noise - x0, noise, sigmas(steps, 3.0))
    torch.testing.assert_close(got, x0, rtol=1e-5, atol=1e-5)


def test_noise_is_a_function_of_the_seed():
    assert torch.equal(initial_noise(7, (1, 4, 8, 8)), initial_noise(7, (1, 4, 8, 8)))
    assert not torch.equal(initial_noise(7, (1, 4, 8, 8)), initial_noise(8, (1, 4, 8, 8)))


def test_time_features_tell_the_steps_apart():
    features = time_features(torch.tensor([1.0, 0.9, 0.75, 0.5]), 64)
    assert features.shape == (4, 64)
    assert torch.cdist(features, features).fill_diagonal_(9).min() > 0.5
