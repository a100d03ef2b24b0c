"""The loop: budgets, early stopping, kill and resume bit for bit, and every fault of the table."""

import contextlib
import copy
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import torch

from likely import families, store, train
from likely.dataset import Data, Split
from likely.errors import TrainingError, UsageError
from likely.model import Recipe
from likely.space import Space
from likely.training import trainer as trainer_module
from likely.training.budget import Budget
from likely.training.checkpoint import Checkpoints, flatten_optimiser, unflatten_optimiser
from likely.training.optimisers import clip_gradients, optimiser_of
from likely.training.order import batch_rows
from strangers import Independent


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "independent", families.Family("strangers:Independent"))
    families.registry.cache_clear()
    yield
    families.registry.cache_clear()


def toy(n=300):
    x = (torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0)) ** 2 * 3).long()
    return Data(Space.grid(1, 2, 2, 3), Split(x[:200]), Split(x[200:250]), Split(x[250:]), name="toy")


def fit(**how):
    return train.fit(toy(), "independent", **{"steps": 40, "progress": False, **how})


def weights(run):
    return run.model.state_dict()["logits.weight"]


# --- budgets and order -------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step_whatever_the_ranks():
    whole = batch_rows(10, 4, seed=1, step=3)
    shares = [batch_rows(10, 4, seed=1, step=3, rank=r, world=2) for r in range(2)]
    assert torch.equal(torch.stack(shares, 1).flatten(), whole)
    epoch = torch.cat([batch_rows(10, 5, seed=1, step=s) for s in range(2)])
    assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(batch_rows(10, 4, seed=2, step=3), whole)


def test_a_fitted_model_keeps_its_options():
    """An option that would change nothing is refused, not passed over."""
    model = fit(steps=1).model
    with pytest.raises(UsageError, match="width cannot be changed"):
        train.fit(toy(), model, steps=1, progress=False, width=9)


def test_budgets_are_steps_or_seconds_and_only_one_of_them():
    known = {"examples": 100, "batch": 30}
    assert Budget.of(minutes=None, steps=None, epochs=2, **known).steps == 7
    assert Budget.of(minutes=0.5, steps=None, epochs=None, **known).seconds == 30
    assert Budget.of(minutes=None, steps=None, epochs=None, **known).seconds == 180
    with pytest.raises(UsageError, match="one budget only"):
        Budget.of(minutes=1, steps=1, epochs=None, **known)
    with pytest.raises(UsageError, match="positive"):
        Budget.of(minutes=-1, steps=None, epochs=None, **known)


def test_the_rate_warms_up_and_falls_to_zero():
    budget = Budget(steps=100)
    rates = [budget.learning_rate(s, s / 100, 50) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1, abs=0.05)
    assert rates[-1] < 0.01


def test_a_fit_learns_and_keeps_the_validated_best():
    run = fit(steps=200)
    x = toy().test.x
    fresh = families.build("independent", toy().space).eval()
    assert run.model.log_prob(x).nats.mean() > fresh.log_prob(x).nats.mean() + 0.1
    assert run.curve[-1]["valid"] < run.curve[0]["valid"]
    assert not run.model.training
    assert all(p.requires_grad for p in run.model.parameters())


def test_training_stops_early_when_validation_no_longer_falls(monkeypatch):
    monkeypatch.setattr(Independent, "recipe", Recipe(lr=0.5, batch=32, ema=0.0, patience=2))
    run = fit(steps=2000)
    assert run.stopped == "early stop"
    assert run.steps < 2000


def test_a_budget_in_minutes_is_kept():
    start = time.perf_counter()
    run = fit(steps=None, minutes=0.01)
    assert 0.5 < run.seconds < time.perf_counter() - start + 0.1
    assert run.stopped in ("budget", "early stop")


def test_the_outer_random_state_and_threads_are_left_alone():
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    fit(threads=2)
    assert torch.equal(torch.rand(2), want)
    assert torch.get_num_threads() == threads


def test_progress_reports_what_a_person_wants_to_see():
    seen = []
    fit(progress=seen.append)
    assert {"step", "train", "valid", "unit", "steps_per_s", "seconds_left", "fraction"} <= set(seen[-1])
    assert seen[-1]["unit"] == "bits/dim"


# --- one folder, one run -----------------------------------------------------------------------------


def test_a_finished_run_is_not_repeated_and_other_settings_are_refused(tmp_path):
    first = fit(out=tmp_path / "m")
    again = fit(out=tmp_path / "m")
    assert torch.equal(weights(first), weights(again))
    assert json.loads((tmp_path / "m/run.json").read_text())["steps"] == 40
    assert not (tmp_path / "m/checkpoints").exists()
    with pytest.raises(UsageError, match="holds a run with budget 40 steps, not 41 steps"):
        fit(out=tmp_path / "m", steps=41)


def test_the_log_has_a_line_per_report(tmp_path):
    fit(out=tmp_path / "m")
    lines = [json.loads(line) for line in (tmp_path / "m/log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 40
    assert len(lines) >= 20


# --- optimisers ----------------------------------------------------------------------------------------


def test_muon_turns_the_matrices_of_linear_maps_and_adamw_the_rest():
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 6), torch.nn.LayerNorm(6))
    optimiser = optimiser_of(module, Recipe(optimizer="muon"))
    before, matrix = module[1].weight.detach().clone(), module[1].weight
    module(torch.arange(5)).square().sum().backward()
    optimiser.step()
    assert [type(part).__name__ for part in optimiser.parts] == ["AdamW", "Muon"]
    assert [id(p) for group in optimiser.parts[1].param_groups for p in group["params"]] == [id(matrix)]
    singular = torch.linalg.svdvals((matrix - before).float())
    assert singular.max() / singular.min() < 3  # near to orthogonal, whatever the gradient was


def test_the_state_of_muon_survives():
    def trained(optimiser, steps):
        for _ in range(steps):
            optimiser.zero_grad()
            module(torch.arange(5)).square().sum().backward()
            optimiser.step()

    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 6))
    first = optimiser_of(module, Recipe(optimizer="muon"))
    trained(first, 3)
    weights, state = copy.deepcopy(module.state_dict()), copy.deepcopy(first.state_dict())
    trained(first, 2)
    wanted = copy.deepcopy(module.state_dict())
    module.load_state_dict(weights)
    again = optimiser_of(module, Recipe(optimizer="muon"))
    again.load_state_dict(unflatten_optimiser("o", flatten_optimiser("o", state)))
    trained(again, 2)
    assert all(torch.equal(wanted[name], t) for name, t in module.state_dict().items())


# --- kill and resume ---------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL within a process: nothing catches it."""


def _killed_at(monkeypatch, steps):
    """Kill the run, once each, when it is about to take these steps."""
    pending, plain = set(steps), trainer_module.Trainer._step

    def step(self, fraction):
        if self.state.step in pending:
            pending.discard(self.state.step)
            raise Killed
        plain(self, fraction)

    monkeypatch.setattr(trainer_module.Trainer, "_step", step)


def test_a_run_killed_several_times_equals_the_unbroken_one_bit_for_bit(tmp_path, monkeypatch):
    whole = fit(out=tmp_path / "whole")
    _killed_at(monkeypatch, {3, 11, 12, 29})
    for _ in range(4):
        with pytest.raises(Killed):
            fit(out=tmp_path / "broken", checkpoint_seconds=0)
    broken = fit(out=tmp_path / "broken", checkpoint_seconds=0)
    assert torch.equal(weights(whole), weights(broken))
    assert [c["valid"] for c in whole.curve] == [c["valid"] for c in broken.curve]
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken/log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_killed_run_in_minutes_goes_on_with_the_seconds_that_were_left(tmp_path, monkeypatch):
    _killed_at(monkeypatch, {20})
    with pytest.raises(Killed):
        fit(steps=None, minutes=0.05, out=tmp_path / "m", checkpoint_seconds=0.001)
    checkpoints = Checkpoints(tmp_path / "m/checkpoints")
    facts = checkpoints.read(max(checkpoints.steps()))[1]
    run = fit(steps=None, minutes=0.05, out=tmp_path / "m")
    assert run.steps > 20
    assert 0 < facts["elapsed"] < run.seconds
    assert run.stopped == "early stop" or run.seconds == pytest.approx(3, abs=1)


SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    import test_train
    from likely import families
    families.FAMILIES["independent"] = families.Family("strangers:Independent")
    from strangers import Independent
    from dataclasses import replace
    Independent.recipe = replace(Independent.recipe, patience=0)
    test_train.fit(steps=1500, out=sys.argv[1], checkpoint_seconds=0.02, threads=1)
"""


def _start(folder):
    code = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent))
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stderr=subprocess.DEVNULL)


def _wait_for_checkpoint(process, folder, after=-1):
    """Wait until a checkpoint later than step `after` is there; its step."""
    while process.poll() is None:
        steps = [int(p.name.split("-")[1]) for p in (folder / "checkpoints").glob("step-*-rank0-*")]
        if steps and max(steps) > after:
            return max(steps)
        time.sleep(0.01)
    return after


@pytest.mark.slow
def test_sigkill_of_a_process_and_repeat_equals_the_unbroken_run(tmp_path):
    assert _start(tmp_path / "whole").wait() == 0
    step = -1
    for _ in range(5):
        process = _start(tmp_path / "broken")
        step = _wait_for_checkpoint(process, tmp_path / "broken", step)
        process.kill()
        process.wait()
    assert _start(tmp_path / "broken").wait() == 0
    whole, broken = (store.open_model(tmp_path / name) for name in ("whole", "broken"))
    assert torch.equal(whole.state_dict()["logits.weight"], broken.state_dict()["logits.weight"])
    assert not list((tmp_path / "broken").rglob("*.tmp"))


@pytest.mark.slow
def test_sigterm_ends_a_process_with_a_checkpoint_and_its_exit_code(tmp_path):
    process = _start(tmp_path / "m")
    _wait_for_checkpoint(process, tmp_path / "m")
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert Checkpoints(tmp_path / "m/checkpoints").steps()


def _signal_at(monkeypatch, step, number):
    plain = trainer_module.Trainer._step

    def signalled(self, fraction):
        plain(self, fraction)
        if self.state.step == step:
            signal.raise_signal(number)

    monkeypatch.setattr(trainer_module.Trainer, "_step", signalled)


def test_sigterm_finishes_the_step_and_leaves_a_checkpoint_to_go_on_from(tmp_path, monkeypatch):
    whole = fit(out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        _signal_at(patch, 20, signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            fit(out=tmp_path / "m")
    assert ended.value.code == 143
    assert Checkpoints(tmp_path / "m/checkpoints").steps() == {21}
    assert torch.equal(weights(fit(out=tmp_path / "m")), weights(whole))


def test_ctrl_c_keeps_the_best_model_so_far_and_the_same_call_goes_on(tmp_path, monkeypatch):
    whole = fit(out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        _signal_at(patch, 20, signal.SIGINT)
        run = fit(out=tmp_path / "m")
    assert run.stopped == "interrupted"
    assert run.steps == 21
    assert store.open_model(tmp_path / "m").state_dict().keys() == run.model.state_dict().keys()
    assert torch.equal(weights(fit(out=tmp_path / "m")), weights(whole))


# --- faults ------------------------------------------------------------------------------------------


def _bad_loss(monkeypatch, steps):
    """Make the loss NaN at these steps."""
    plain = Independent.forward
    count = {"step": -1}

    def forward(self, x, given=None, *, turn=""):
        if self.training:
            count["step"] += 1
        loss = plain(self, x, given, turn=turn)
        return loss * float("nan") if self.training and count["step"] in steps else loss

    monkeypatch.setattr(Independent, "forward", forward)


def _events(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["event"] for line in lines if "event" in line]


def test_a_nan_loss_is_skipped(tmp_path, monkeypatch):
    _bad_loss(monkeypatch, {5, 9})
    run = fit(out=tmp_path / "m")
    assert weights(run).isfinite().all()
    assert _events(tmp_path / "m") == ["gradient is NaN or infinite: step skipped"] * 2


def test_nan_losses_in_a_row_roll_back_at_half_the_rate(tmp_path, monkeypatch):
    _bad_loss(monkeypatch, set(range(20, 27)))
    run = fit(out=tmp_path / "m", steps=80)
    assert any("rolled back" in event for event in _events(tmp_path / "m"))
    assert run.stopped in ("budget", "early stop")


def test_a_loss_that_stays_nan_stops_with_the_last_good_model_on_disk(tmp_path, monkeypatch):
    _bad_loss(monkeypatch, set(range(25, 10**6)))
    with pytest.raises(TrainingError, match="stays NaN"):
        fit(out=tmp_path / "m", steps=400)
    assert store.open_model(tmp_path / "m").state_dict()["logits.weight"].isfinite().all()
    assert not (tmp_path / "m/run.json").exists()


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(tmp_path, monkeypatch):
    whole = fit(steps=10)
    plain = Independent.forward

    def forward(self, x, given=None, *, turn=""):
        if self.training and len(x) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return plain(self, x, given, turn=turn)

    monkeypatch.setattr(Independent, "forward", forward)
    run = fit(steps=10, out=tmp_path / "m")
    assert any("micro-batches" in event for event in _events(tmp_path / "m"))
    assert (weights(run) - weights(whole)).abs().max() < 0.1


def test_out_of_memory_with_one_example_is_an_error_with_a_remedy(monkeypatch):
    def forward(self, x, given=None, *, turn=""):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Independent, "forward", forward)
    with pytest.raises(TrainingError, match="smaller --batch"):
        fit()


def test_other_errors_are_not_mistaken_for_lack_of_memory(monkeypatch):
    def forward(self, x, given=None, *, turn=""):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Independent, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit()


def test_a_full_disk_while_checkpointing_keeps_the_previous_checkpoint_and_goes_on(tmp_path, monkeypatch):
    plain, calls = os.fsync, {"n": 0}

    def fsync(descriptor):
        calls["n"] += 1
        if 20 < calls["n"] < 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.warns(RuntimeWarning, match="No space left"):
        run = fit(out=tmp_path / "m", checkpoint_seconds=0)
    assert run.steps == 40
    assert store.open_model(tmp_path / "m") is not None


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, monkeypatch):
    whole = fit(out=tmp_path / "whole")
    _killed_at(monkeypatch, {20})
    with pytest.raises(Killed):
        fit(out=tmp_path / "m", checkpoint_seconds=0)
    newest = sorted((tmp_path / "m/checkpoints").glob("step-*"))[-1]
    body = bytearray(newest.read_bytes())
    body[-3] ^= 255
    newest.write_bytes(body)
    with pytest.warns(RuntimeWarning, match="damaged"):
        run = fit(out=tmp_path / "m")
    assert torch.equal(weights(run), weights(whole))


def test_when_all_checkpoints_are_damaged_training_starts_anew_and_says_so(tmp_path, monkeypatch):
    whole = fit(out=tmp_path / "whole")
    _killed_at(monkeypatch, {20})
    with pytest.raises(Killed):
        fit(out=tmp_path / "m", checkpoint_seconds=0)
    for path in (tmp_path / "m/checkpoints").glob("step-*"):
        path.write_bytes(path.read_bytes()[:100])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(out=tmp_path / "m")
    assert sum("damaged" in str(w.message) for w in caught) == 2
    assert torch.equal(weights(run), weights(whole))


def test_a_tracker_that_is_not_installed_is_a_clear_error():
    with pytest.raises(UsageError, match="tracker"):
        fit(track="nonesuch")


def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UsageError, match="Usable: auto, cpu"):
        fit(device="cuda")


def test_finished_checkpoints_never_outgrow_two(tmp_path, monkeypatch):
    _killed_at(monkeypatch, {30})
    with contextlib.suppress(Killed):
        fit(out=tmp_path / "m", checkpoint_seconds=0)
    assert len(list((tmp_path / "m/checkpoints").iterdir())) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("most", [0.5, 100.0])
def test_gradients_are_clipped_as_torch_clips_them(most, dtype):
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(n, 3, dtype=dtype)) for n in (2, 1, 5)] for _ in range(2))
    for p, q in zip(ours[:2], theirs[:2], strict=True):  # the last has none
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    torch.testing.assert_close(clip_gradients(ours, most), torch.nn.utils.clip_grad_norm_(theirs, most))
    for p, q in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    ours[0].grad[0, 0] = torch.nan  # type: ignore[index]
    assert clip_gradients(ours, most).isnan()
