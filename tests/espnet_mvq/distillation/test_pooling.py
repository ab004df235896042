"""The mean of an utterance's frames."""

import torch

from espnet_mvq.distillation import mean_over_time


def test_mean_is_of_the_frames_that_are_there():
    frames = torch.randn(3, 5, 4, requires_grad=True)
    lengths = torch.tensor([5, 2, 0])
    with torch.no_grad():
        frames[1, 2:] = float("nan")  # padding holds anything
    means, one = mean_over_time(frames, lengths)
    assert one.tolist() == [1, 1, 0]
    torch.testing.assert_close(means[0, 0], frames[0].mean(0))
    torch.testing.assert_close(means[1, 0], frames[1, :2].mean(0))
    assert means[2].eq(0).all()
    means.sum().backward()
    assert frames.grad.isfinite().all()
