"""Frame alignment against plain loops over times."""

import math
from fractions import Fraction

import pytest
import torch

from espnet_mvq.distillation import IGNORE, FrameAligner, FrameGrid, mean_over_time

STUDENT_SHIFTS = [160, 320, 512, 640, 960, 1024]


def slots_by_loops(student, teacher, delay, num_frames, num_slots):
    """Return the teacher frame of each slot, None where no centre lies in it."""
    rows = []
    slot = Fraction(student.shift_samples) / num_slots
    for j in range(num_frames):
        centre = Fraction(student.offset_samples) + j * student.shift_samples - delay
        start = centre - Fraction(student.shift_samples) / 2
        row = []
        for s in range(num_slots):
            low, high = start + s * slot, start + (s + 1) * slot
            inside = [
                t
                for t in range(-20, 200)
                if low <= Fraction(teacher.offset_samples) + t * 320 < high
            ]
            row.append(inside[0] if inside else None)
            assert len(inside) <= 1
        rows.append(row)
    return rows


def nearest_by_loops(student, teacher, delay, num_frames):
    """Return the teacher frame nearest to each student frame; ties to the earlier."""
    nearest = []
    for j in range(num_frames):
        time = student.offset_samples + j * student.shift_samples - delay
        distances = {
            t: abs(teacher.offset_samples + t * teacher.shift_samples - time)
            for t in range(-200, 200)
        }
        nearest.append(min(distances, key=lambda t: (distances[t], t)))
    return nearest


@pytest.mark.parametrize("shift", [s for s in STUDENT_SHIFTS if s > 320])
@pytest.mark.parametrize("teacher_offset", [0, 199.5])
@pytest.mark.parametrize("delay", [0, 1600, 100.5])
@pytest.mark.parametrize("student_offset", [0, 480])
def test_slots_of_a_slower_student(shift, teacher_offset, delay, student_offset):
    student, teacher = FrameGrid(shift, student_offset), FrameGrid(320, teacher_offset)
    aligner = FrameAligner(student, teacher, delay)
    assert aligner.num_slots == math.ceil(shift / 320)
    frames, inside = aligner.teacher_frames(12)
    expected = slots_by_loops(student, teacher, delay, 12, aligner.num_slots)
    frames = frames.masked_fill(~inside, 999).tolist()
    assert frames == [[999 if t is None else t for t in row] for row in expected]


@pytest.mark.parametrize("shift", [s for s in STUDENT_SHIFTS if s > 320])
@pytest.mark.parametrize("teacher_offset", [0, 199.5])
@pytest.mark.parametrize("delay", [0, 37, 640])
def test_each_teacher_frame_is_predicted_once(shift, teacher_offset, delay):
    student, teacher = FrameGrid(shift, 480), FrameGrid(320, teacher_offset)
    frames, inside = FrameAligner(student, teacher, delay).teacher_frames(300)
    predicted = frames[inside].tolist()
    first, last = predicted[0], predicted[-1]
    assert predicted == list(range(first, last + 1))
    assert len(predicted) == pytest.approx(300 * shift / 320, abs=2)


@pytest.mark.parametrize("stretch", [0.9, 1, 1.1])
@pytest.mark.parametrize("shift", STUDENT_SHIFTS)
def test_slots_are_filled_as_often_as_the_ratio_says(shift, stretch):
    """Under a time warp too, whatever its speed."""
    aligner = FrameAligner(FrameGrid(shift, 480), FrameGrid(320, 0), 100)
    times = stretch * aligner.slot_centres(2000).unsqueeze(0)
    lengths = torch.tensor([2000])
    values = torch.zeros(1, 9000, 1)
    _, known = aligner.gather(values, lengths + 7000, lengths, 2000, times)
    expected = 2000 * aligner.targets_per_frame
    assert int(known.sum()) == pytest.approx(expected, rel=0.01)
    assert aligner.targets_per_frame == max(1, shift / 320)


@pytest.mark.parametrize("shift", STUDENT_SHIFTS)
@pytest.mark.parametrize("teacher_offset", [0, 199.5, 480])
def test_warp_that_moves_nothing_changes_nothing(shift, teacher_offset):
    """Nor where a teacher frame lies on the border of two slots."""
    student, teacher = FrameGrid(shift, 480), FrameGrid(320, teacher_offset)
    aligner = FrameAligner(student, teacher)
    indexes, lengths = own_time(1, 90, 2), torch.tensor([90])
    times = aligner.slot_centres(30).unsqueeze(0)
    plain = targets_of(aligner, indexes, lengths, lengths, 30)
    assert torch.equal(targets_of(aligner, indexes, lengths, lengths, 30, times), plain)


@pytest.mark.parametrize("shift", [160, 320])
@pytest.mark.parametrize("teacher_shift", [320, 640, 1000])
@pytest.mark.parametrize("offset, delay", [(0, 0), (199.5, 0), (199.5, 800)])
def test_slower_teacher_gives_the_nearest_frame(shift, teacher_shift, offset, delay):
    student, teacher = FrameGrid(shift, 480), FrameGrid(teacher_shift, offset)
    aligner = FrameAligner(student, teacher, delay)
    frames, inside = aligner.teacher_frames(40)
    assert aligner.num_slots == 1 and inside.all()
    expected = nearest_by_loops(student, teacher, delay, 40)
    assert frames.flatten().tolist() == expected


def test_equal_grids_give_the_same_frame_or_that_of_the_delay():
    grid = FrameGrid(320, 199.5)
    frames, inside = FrameAligner(grid, grid).teacher_frames(7)
    assert frames.flatten().tolist() == list(range(7)) and inside.all()
    frames, _ = FrameAligner(grid, grid, delay_samples=640).teacher_frames(4)
    assert frames.flatten().tolist() == [-2, -1, 0, 1]


def test_shift_that_is_no_whole_number_of_samples_does_not_drift():
    """11025 Hz features against a 50 Hz teacher, one hour."""
    student, teacher = FrameGrid(16000 / 30, 0), FrameGrid(320, 0)
    frames, inside = FrameAligner(student, teacher).teacher_frames(108_000)
    predicted = frames[inside]
    assert (predicted.diff() == 1).all()
    assert abs(int(predicted[-1]) - 180_000) < 5


@pytest.mark.parametrize("shift", [0, -160])
def test_shift_must_be_positive(shift):
    with pytest.raises(ValueError, match=f"got {shift} samples"):
        FrameGrid(shift, 0)


def targets_of(aligner, indexes, *lengths_and_times):
    """Gather codebook indexes as targets: (B, T, num_slots * N)."""
    values, known = aligner.gather(indexes, *lengths_and_times)
    return values.masked_fill(~known.unsqueeze(3), IGNORE).flatten(2)


@pytest.fixture
def aligner():
    """Two slots of one teacher frame each: student frame j has frames 2j and 2j+1."""
    return FrameAligner(FrameGrid(640, 160), FrameGrid(320, 0))


def own_time(batch, num_frames, num_codebooks):
    """Indexes that say which frame and codebook they are of: 10 * frame + codebook."""
    frames = 10 * torch.arange(num_frames)[:, None] + torch.arange(num_codebooks)
    return frames.repeat(batch, 1, 1)


def test_targets_hold_the_indexes_of_their_time(aligner):
    lengths = torch.tensor([6])
    targets = targets_of(aligner, own_time(1, 6, 2), lengths, torch.tensor([3]), 3)
    assert targets.tolist() == [[[0, 1, 10, 11], [20, 21, 30, 31], [40, 41, 50, 51]]]


def test_targets_end_with_the_shorter_of_both(aligner):
    indexes = own_time(3, 6, 1)
    lengths = torch.tensor([3, 6, 6]), torch.tensor([3, 2, 4])
    targets = targets_of(aligner, indexes, *lengths, 4)
    none = [IGNORE, IGNORE]
    assert targets.tolist() == [
        [[0, 10], [20, IGNORE], none, none],
        [[0, 10], [20, 30], none, none],
        [[0, 10], [20, 30], [40, 50], none],
    ]


@pytest.mark.parametrize("shift", STUDENT_SHIFTS)
def test_targets_do_not_depend_on_padding(shift):
    aligner = FrameAligner(FrameGrid(shift, 480), FrameGrid(320, 199.5))
    indexes = torch.randint(0, 16, (1, 7, 2))
    alone = targets_of(aligner, indexes, torch.tensor([7]), torch.tensor([5]), 5)
    padded = torch.cat([indexes, torch.full((1, 4, 2), -1)], dim=1)
    both = torch.cat([padded, torch.randint(0, 16, (1, 11, 2))])
    batch = targets_of(aligner, both, torch.tensor([7, 11]), torch.tensor([5, 9]), 9)
    assert torch.equal(batch[:1, :5], alone)
    assert (batch[0, 5:] == IGNORE).all()


def test_slower_teacher_does_not_reach_beyond_its_ends():
    aligner = FrameAligner(FrameGrid(160, 0), FrameGrid(640, 640))
    lengths = torch.tensor([2]), torch.tensor([14])
    targets = targets_of(aligner, own_time(1, 2, 1), *lengths, 14).flatten()
    # Nearest to frame 0 (sample 640) from 320 on, to frame 1 (1280) until 1600
    assert targets.tolist() == [-1] * 3 + [0] * 4 + [10] * 4 + [-1] * 3


@pytest.mark.parametrize("num_indexes", [0, 4])
def test_utterances_without_indexes_have_no_targets(aligner, num_indexes):
    indexes = torch.zeros(2, num_indexes, 3, dtype=torch.int64)
    none = torch.zeros(2, dtype=torch.int64)
    targets = targets_of(aligner, indexes, none, torch.tensor([5, 3]), 5)
    assert targets.shape == (2, 5, 6) and (targets == IGNORE).all()


def test_mean_leaves_out_the_padding():
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
