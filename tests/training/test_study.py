"""The study behind kmed tune: no trial is lost or doubled, whoever is killed; without training."""

import itertools
import json
import os
import signal

import optuna
import pytest

from kmed.errors import RunError
from kmed.training import study
from kmed.training.space import make_space

SPACE = make_space({"train.learning_rate": {"log": [1e-4, 0.1]}, "augment.level": {"choices": ["light", "strong"]}}, "")
MONITOR = "val_loss"
EPOCHS = 3


def open_study(folder, *, prune=False):
    return study.open_study(folder, minimize=True, prune=prune, warmup=1)


def claim(current, folder, trials=4):
    return study.claim_trial(current, folder, SPACE, trials=trials, seed=0)


def rows_of(values, epochs=EPOCHS):
    """Returns the history of a pretended run."""
    return [{"epoch": epoch, MONITOR: values["train.learning_rate"] + 1 / epoch} for epoch in range(1, epochs + 1)]


def finish(current, folder, claimed):
    rows = rows_of(claimed.values)
    study.report_epochs(claimed, rows, MONITOR)
    study.end_trial(current, folder, claimed, "finished", value=rows[-1][MONITOR], seconds=6)


def in_child(work) -> int:
    """Runs a function in a forked process; returns its exit code, negative if a signal ended it."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_there_are_as_many_trials_as_wanted_and_their_table_says_how_they_ended(tmp_path):
    current = open_study(tmp_path)
    for _ in range(2):
        finish(current, tmp_path, claim(current, tmp_path))
    pruned, failed = claim(current, tmp_path), claim(current, tmp_path)
    study.report_epochs(pruned, rows_of(pruned.values, epochs=2), MONITOR)
    study.end_trial(current, tmp_path, pruned, "pruned", note="worse")
    study.end_trial(current, tmp_path, failed, "failed", note="no")
    assert claim(current, tmp_path) is None
    table = study.list_trials(current, SPACE, MONITOR)
    assert table["trial"].tolist() == [0, 1, 2, 3]
    assert table["state"].tolist() == ["finished", "finished", "pruned", "failed"]
    assert table["note"].tolist() == ["", "", "worse", "no"] and table["minutes"].tolist()[:2] == [0.1, 0.1]
    assert table["best_epoch"].tolist() == [3, 3, 2, 0] and table["epochs"].tolist() == [3, 3, 2, 0]
    assert table[MONITOR].isna().tolist() == [False, False, False, True]
    assert claim(current, tmp_path, trials=5).number == 4  # more of them extend the study
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".kmed-lock")]


def test_a_trial_in_training_is_nobody_elses_and_one_without_a_process_is_taken_up(tmp_path):
    def train_and_die():
        current = open_study(tmp_path)
        claimed = claim(current, tmp_path)
        study.report_epochs(claimed, rows_of(claimed.values, epochs=1), MONITOR)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(train_and_die) == -signal.SIGKILL
    current = open_study(tmp_path)
    left = current.get_trials()[0].params
    again = claim(current, tmp_path)
    assert (again.number, again.values, again.again, again.given_up) == (0, left, True, False)

    def ask():
        other = claim(open_study(tmp_path), tmp_path)
        assert (other.number, other.again) == (1, False)  # trial 0 is in training here

    assert in_child(ask) == 0
    study.report_epochs(again, rows_of(again.values), MONITOR)
    assert sorted(current.get_trials()[0].intermediate_values) == [1, 2, 3]  # the first is not reported twice
    finish(current, tmp_path, again)
    assert claim(current, tmp_path).number == 1  # whose process has ended


def test_a_lock_file_that_a_killed_process_left_of_a_finished_trial_is_removed(tmp_path):
    current, lock = open_study(tmp_path), tmp_path / ".trial0.lock"
    finish(current, tmp_path, claim(current, tmp_path))
    assert not lock.exists()
    lock.touch()  # the process was killed when the journal knew the end of the trial
    assert claim(current, tmp_path, trials=1) is None and not lock.exists()


def test_a_process_killed_at_any_write_of_the_journal_loses_and_doubles_nothing(tmp_path):
    """The child is killed before its first, second, ... record, until it comes to its end by itself."""
    for count in itertools.count():
        folder = tmp_path / str(count)
        folder.mkdir()

        def work(folder=folder, count=count):
            left = [count]
            append = study.JournalFileBackend.append_logs

            def counted(self, logs):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                append(self, logs)

            study.JournalFileBackend.append_logs = counted
            current = open_study(folder)
            while claimed := claim(current, folder, trials=2):
                finish(current, folder, claimed)

        killed = in_child(work)
        assert killed in (0, -signal.SIGKILL)
        current = open_study(folder)
        while claimed := claim(current, folder, trials=2):
            finish(current, folder, claimed)
        table = study.list_trials(current, SPACE, MONITOR)
        assert table["trial"].tolist() == [0, 1] and set(table["state"]) == {"finished"}
        assert table["epochs"].tolist() == [3, 3] and table[SPACE.names].notna().all(axis=None)
        if killed == 0:
            break
    assert count > 15


def test_the_values_of_a_trial_depend_on_the_seed_and_the_trials_before_it_alone(tmp_path):
    found = {}
    for name, restarts in (("whole", False), ("restarted", True)):
        folder = tmp_path / name
        folder.mkdir()
        current = open_study(folder)
        for _ in range(14):  # the sampler learns after ten
            finish(current, folder, claim(current, folder, trials=14))
            current = open_study(folder) if restarts else current
        found[name] = study.list_trials(current, SPACE, MONITOR)
    assert found["whole"].equals(found["restarted"])
    assert found["whole"]["train.learning_rate"].nunique() == 14
    importance = study.measure_importance(current)
    assert set(importance) == set(SPACE.names) and sum(importance.values()) == pytest.approx(1)
    assert importance["train.learning_rate"] > importance["augment.level"]


def test_a_trial_that_kills_its_process_is_given_up_but_not_one_that_was_interrupted(tmp_path):
    def stop(how):
        claimed = claim(open_study(tmp_path), tmp_path)
        if how == "interrupted":
            study.interrupt_trial(claimed)

    for how in ["interrupted"] * 4 + ["killed"] * 3:
        assert in_child(lambda how=how: stop(how)) == 0
    current = open_study(tmp_path)
    assert claim(current, tmp_path).given_up
    study.interrupt_trial(claim(open_study(tmp_path), tmp_path, trials=9))


def test_a_poor_trial_is_pruned_once_others_have_finished(tmp_path):
    current = open_study(tmp_path, prune=True)
    for _ in range(study.PRUNE_AFTER):
        finish(current, tmp_path, claim(current, tmp_path, trials=9))
    poor = claim(current, tmp_path, trials=9)
    for epoch, expected in ((1, False), (2, True)):  # the first epoch is never the reason
        study.report_epochs(poor, [{"epoch": epoch, MONITOR: 9.0}], MONITOR)
        assert bool(poor.trial.should_prune()) is expected


def test_a_record_that_was_cut_short_is_removed_and_a_damaged_journal_is_one_line(tmp_path):
    current = open_study(tmp_path)
    finish(current, tmp_path, claim(current, tmp_path))
    journal = tmp_path / study.JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":5,"tri')
    current = open_study(tmp_path)
    finish(current, tmp_path, claim(current, tmp_path))
    assert len(study.list_trials(open_study(tmp_path), SPACE, MONITOR)) == 2
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    journal.write_bytes(whole.replace(b"op_code", b"opcode", 2))
    with pytest.raises(RunError, match=r"journal.log cannot be read: .* It is damaged: begin a new study"):
        open_study(tmp_path)


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "try_lock", lambda path: study.Lock(path.open("a"), sure=False))
    with pytest.raises(RunError, match="has no locks, which a study needs. Choose another --out"):
        claim(open_study(tmp_path), tmp_path)


def test_every_state_of_optuna_has_a_name():
    assert set(study.STATES) == set(optuna.trial.TrialState)
