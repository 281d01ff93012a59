import pytest

from rare_lightning.inference.mirroring import flipped_axes, mirror_images


def flip(**arguments):
    return {"class_path": "torchio.RandomFlip", "init_args": arguments}


@pytest.mark.parametrize(
    ("augmentation", "axes"),
    [
        (None, []),
        ([], []),
        ([{"class_path": "torchio.RandomAffine", "init_args": {"scales": [0.9, 1.1]}}], []),
        ([{"class_path": "torchio.RandomFlip"}], [0]),
        ([flip(flip_probability=0.5)], [0]),
        ([flip(axes=2)], [2]),
        ([flip(axes=[1, 0])], [0, 1]),
        ([flip(axes=(2,)), flip(axes="lr")], [0, 2]),
        ([flip(axes=["Anterior", "S"])], [1, 2]),
        ([flip(axes=[1], p=0), flip(axes=[0], flip_probability=0)], []),
        ([{"class_path": "torchio.OneOf", "init_args": {"transforms": [flip(axes=[1]), flip(axes=2)]}}], [1, 2]),
        ([{"class_path": "torchio.transforms.RandomFlip", "init_args": {"axes": [1]}}], [1]),
    ],
)
def test_axes_are_those_that_training_flipped(augmentation, axes):
    assert flipped_axes(augmentation) == axes


def test_mirror_images_are_all_combinations_of_the_axes():
    assert mirror_images([]) == [()]
    assert mirror_images([1]) == [(), (3,)]
    assert mirror_images([0, 2]) == [(), (2,), (4,), (2, 4)]
    assert len(set(mirror_images([0, 1, 2]))) == 8
