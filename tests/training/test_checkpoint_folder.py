"""The checkpoints of a run side by side: in order, the best among them, and what is cleared away."""

import pytest

from ddpm_lib.training.checkpoint import (
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
    step_path,
    sweep,
)


def saved_at(folder, *steps, **metrics):
    """Checkpoints of these steps, some with a metric (step_4=0.5, say)."""
    for step in steps:
        save_checkpoint(step_path(folder, step), {}, {"step": step, "metric": metrics.get(f"step_{step}")})


def steps_in(folder):
    return [load_checkpoint(path)[1]["step"] for path in list_checkpoints(folder)]


def test_checkpoints_are_listed_by_step_and_nothing_else_is(tmp_path):
    assert list_checkpoints(tmp_path / "none") == []
    saved_at(tmp_path, 1000, 9, 80, 10_000_000, 0)
    for other in ("step-00000007.damaged", ".step-00000008.safetensors.1.partial", "best.safetensors", "log.jsonl"):
        (tmp_path / other).touch()
    assert steps_in(tmp_path) == [0, 9, 80, 1000, 10_000_000]
    assert steps_in(str(tmp_path)) == [0, 9, 80, 1000, 10_000_000]


def test_the_best_checkpoint_has_the_lowest_metric_and_is_the_older_of_two(tmp_path):
    assert best_checkpoint(tmp_path) is None
    saved_at(tmp_path, 1, 2)
    assert best_checkpoint(tmp_path) is None
    saved_at(tmp_path, 3, 4, 5, 6, 7, 8, step_3=0.5, step_4=-2.0, step_5=0, step_6=-2.0, step_8=float("nan"))
    assert best_checkpoint(tmp_path) == step_path(tmp_path, 4)
    saved_at(tmp_path, 0, step_0=float("nan"))
    step_path(tmp_path, 5).write_bytes(b"spoiled")
    assert best_checkpoint(tmp_path) == step_path(tmp_path, 4)
    saved_at(tmp_path, 8, step_8=-3)
    assert best_checkpoint(str(tmp_path)) == step_path(tmp_path, 8)


@pytest.mark.parametrize(
    ("keep", "metrics", "left"),
    [
        (1, {}, [6]),
        (2, {}, [5, 6]),
        (2, {"step_2": 1, "step_3": 2}, [2, 5, 6]),
        (2, {"step_5": 1, "step_3": 2}, [5, 6]),
        (9, {"step_2": 1}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_last_ones_and_the_best_are_spared(tmp_path, keep, metrics, left):
    saved_at(tmp_path, 1, 2, 3, 4, 5, 6, **metrics)
    (tmp_path / "step-00000001.damaged").touch()
    for _ in range(2):
        prune(tmp_path, keep)
        assert steps_in(tmp_path) == left
    assert len(list(tmp_path.iterdir())) == len(left) + 1


def test_only_partial_files_are_swept_away(tmp_path):
    for name in ("step-00000001.safetensors", "a.partial", ".hidden", "log.jsonl", "step-00000002.damaged"):
        (tmp_path / name).touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in (".step-00000002.safetensors.77.partial", ".log.jsonl.78.partial"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    sweep(tmp_path / "none")
