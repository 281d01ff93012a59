from rare_lightning.inference.forward_times import time_forwards


def test_every_network_is_timed_at_every_level_whatever_the_size(segmenter):
    times = time_forwards({"a": segmenter, "b": segmenter}, (17, 24, 19), repeats=2)
    assert list(times) == ["a", "b"]
    assert all(list(levels) == [0, 1, 2] for levels in times.values())
    assert min(seconds for levels in times.values() for seconds in levels.values()) > 0
