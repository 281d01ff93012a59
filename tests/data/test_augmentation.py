import pytest
import torch
import torchio as tio

from rare_lightning.data.augmentation import RetainStatistics

AXES = (1, 2, 3)


@pytest.fixture
def subject():
    torch.manual_seed(0)
    image = torch.rand(2, 12, 13, 14)
    image[:, :4] = 0  # empty space
    shift, scale = torch.tensor([0.4, 0.3])[:, None, None, None], torch.tensor([0.3, 0.5])[:, None, None, None]
    return tio.Subject(
        image=tio.ScalarImage(tensor=(image - shift) / scale), label=tio.LabelMap(tensor=(image[:1] > 0.5).byte())
    )


def test_without_transforms_nothing_changes(subject):
    same = RetainStatistics([])(subject)
    torch.testing.assert_close(same.image.data, subject.image.data)
    assert torch.equal(same.label.data, subject.label.data)


@pytest.mark.parametrize(
    "transform",
    [tio.RandomGamma(log_gamma=(0.4, 0.4)), tio.RandomBiasField(coefficients=(0.5, 0.5))],
    ids=["gamma", "bias"],
)
def test_statistics_and_empty_space_stay_as_they_are(subject, transform):
    changed = RetainStatistics([transform])(subject)
    before, after = subject.image.data, changed.image.data
    assert not torch.allclose(after, before, atol=0.05)
    torch.testing.assert_close(after.mean(AXES), before.mean(AXES), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.std(AXES), before.std(AXES), atol=1e-4, rtol=1e-4)
    assert torch.equal(after[:, :4], before[:, :4])
    assert torch.equal(after.amin(AXES), after[:, :4].amin(AXES))
    assert torch.equal(changed.label.data, subject.label.data)


def test_gamma_does_not_depend_on_the_normalisation(subject):
    gamma = RetainStatistics([tio.RandomGamma(log_gamma=(0.4, 0.4))])
    other = tio.Subject(image=tio.ScalarImage(tensor=subject.image.data * 3 + 7))
    torch.testing.assert_close(gamma(other).image.data, gamma(subject).image.data * 3 + 7, atol=1e-4, rtol=1e-4)
