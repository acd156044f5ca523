"""Stages: done once, in order, several at a time, apart from other processes; commands and what they leave."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial

import pytest

from helpers import Forked
from odis_mm.utils.errors import ConfigError, StageError
from odis_mm.workflows import stages as module
from odis_mm.workflows.stages import Stage, Stages, Worker, exports, scalars


def stage(name, calls, needs=(), result=None, **settings):
    def work(worker, folder, results):
        calls.append((name, dict(results)))
        return dict(result or dict(value=name))

    return Stage(name, settings, work, tuple(needs))


def quiet(path, jobs=1, **kwargs):
    return Stages(path, jobs, say=lambda text: None, **kwargs)


@pytest.mark.parametrize('jobs', [0, -1])
def test_jobs_below_one_are_refused(jobs, tmp_path):
    with pytest.raises(ConfigError, match=f'jobs .--jobs. must be 1 or more, got {jobs}'):
        quiet(tmp_path, jobs)


def test_each_runs_once_after_what_it_needs(tmp_path):
    calls = []
    a, b = stage('a', calls), stage('b', calls)
    c = stage('c', calls, needs=(a, b))
    found = quiet(tmp_path).run([c])
    assert [name for name, _ in calls] == ['a', 'b', 'c'] and calls[2][1]['a']['value'] == 'a'
    assert quiet(tmp_path).run([c]) == found and len(calls) == 3


def test_a_changed_setting_reruns_what_depends_on_it_and_keeps_the_rest(tmp_path):
    calls = []
    a, b = stage('a', calls, lr=1), stage('b', calls)
    quiet(tmp_path).run([stage('c', calls, needs=(a,)), b])
    before = {path: path.read_bytes() for path in tmp_path.rglob('result.json')}
    del calls[:]
    quiet(tmp_path).run([stage('c', calls, needs=(stage('a', calls, lr=2),)), b])
    assert [name for name, _ in calls] == ['a', 'c']
    assert all(path.read_bytes() == content for path, content in before.items())
    del calls[:]
    quiet(tmp_path).run([stage('c', calls, needs=(a,)), b])  # back again
    assert not calls


def test_what_runs_beside_a_failure_is_finished_and_kept(tmp_path):
    calls = []

    def fail(worker, folder, results):
        raise StageError('it broke')

    slow = Stage('slow', {}, lambda *_: time.sleep(0.3) or dict(value=1))
    after = stage('after', calls, needs=(slow,))
    with pytest.raises(StageError, match='it broke'):
        quiet(tmp_path, 2).run([Stage('bad', {}, fail), after])
    assert quiet(tmp_path).result(slow)['value'] == 1 and not calls


def test_two_at_a_time(tmp_path):
    both = threading.Barrier(2, timeout=20)
    stages = [Stage(name, {}, lambda *_: both.wait() and {} or {}) for name in 'ab']
    quiet(tmp_path, 2).run(stages)  # one after the other they would wait for ever


def test_another_process_keeps_its_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'BUSY', 0.05)
    calls = []
    a = stage('a', calls)
    runner = quiet(tmp_path)
    runner.path(a).mkdir(parents=True)
    code = f"""
        import fcntl, json, sys, time
        lock = open({str(runner.path(a) / 'lock')!r}, 'w')
        fcntl.flock(lock, fcntl.LOCK_EX)
        print('locked', flush=True)
        time.sleep(1)
        open({str(runner.path(a) / 'result.json')!r}, 'w').write(json.dumps(dict(value='theirs')))
    """
    other = subprocess.Popen([sys.executable, '-c', textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b'locked\n'
    assert runner.run([a])['a']['value'] == 'theirs' and not calls
    other.wait()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """``odis-mm`` replaced by a script that is given as text; returns the words that start it."""

    def install(code):
        path = tmp_path / 'fake.py'
        path.write_text(textwrap.dedent(code))
        monkeypatch.setattr(module, 'PROGRAM', (sys.executable, str(path)))
        return module.PROGRAM

    return install


def test_a_failing_command_tells_its_sentence(tmp_path, fake):
    worker = Worker((), {})
    fake("import sys; print('error: no such thing.', file=sys.stderr); sys.exit(2)")
    with pytest.raises(StageError, match=r'^no such thing\. \(of: odis-mm train x\)$'):
        worker.command(['train', 'x'], tmp_path)
    fake("raise ValueError('deep inside')")
    with pytest.raises(StageError, match=r'ended with exit code 1; .*log\.txt, which ends: .*deep inside'):
        worker.command(['train', 'x'], tmp_path)
    fake('import sys; sys.exit(75)')
    with pytest.raises(StageError, match='was interrupted: start the same command again'):
        worker.command(['train', 'x'], tmp_path)


def test_a_command_reports_time_and_memory_and_gets_its_environment(tmp_path, fake):
    fake("import os, sys; x = b'1' * 80_000_000; print(os.environ['OMP_NUM_THREADS'], *sys.argv[1:])")
    worker = Worker(('env', 'A=1'), {'OMP_NUM_THREADS': '3'})
    used = worker.command(['train', 'x'], tmp_path)
    assert used['memory_mb'] > 70 and used['seconds'] > 0
    assert (tmp_path / 'log.txt').read_text().split() == ['3', 'train', 'x']


def begin(program: tuple, folder: str) -> None:
    module.PROGRAM = program
    Stages(folder, 1).run([Stage('a', {}, lambda worker, folder, results: worker.command(['train'], folder))])


def test_children_end_with_a_killed_command_and_the_next_one_resumes(tmp_path, fake):
    """SIGKILL leaves nothing running, and a stage that was begun is begun again in the same folder."""
    program = fake("import time; print('begun', flush=True); time.sleep(60)")
    parent = Forked(partial(begin, program, str(tmp_path / 'w')), tmp_path)
    log = None
    for _ in range(1800):
        log = next((tmp_path / 'w').rglob('log.txt'), None)
        if log and 'begun' in log.read_text():
            break
        time.sleep(0.1)
    assert log and 'begun' in log.read_text()
    os.kill(parent.pid, signal.SIGKILL)
    assert parent.wait() == -signal.SIGKILL
    calls = []
    begun = time.time()
    assert quiet(tmp_path / 'w').run([stage('a', calls)])['a']['value'] == 'a'
    assert time.time() - begun < 30 and len(list((tmp_path / 'w' / 'stages').iterdir())) == 1


def test_sigterm_ends_a_command_that_begins_meanwhile(tmp_path, fake):
    fake('import time; time.sleep(60)')
    said = []

    def work(worker, folder, results):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)  # the main thread looks at the processes; now comes another one
        return worker.command(['train'], folder)

    begun = time.time()
    with pytest.raises(SystemExit) as ended:
        Stages(tmp_path / 'w', 1, say=said.append).run([Stage('a', {}, work)])
    assert 'interrupted: 0 of 1 stages are done and kept' in said[-1]
    assert ended.value.code == 75 and time.time() - begun < 45
    assert not list((tmp_path / 'w').rglob('result.json'))


def test_progress_is_read_off_the_log(tmp_path):
    worker = Worker((), {}, log=tmp_path / 'log.txt')
    assert worker.progress() == ''
    worker.log.write_text('11/25 - mmengine - INFO - Iter(train) [ 20/300]  lr: 1\n')
    assert worker.progress() == '20/300'
    worker.log.write_text('... Epoch(train)  [4][ 8/31]  lr: 1\nmore\n')
    assert worker.progress() == 'epoch 4, 8/31'


def test_scalars_and_exports(tmp_path):
    for stamp, ap in (('20260101_000000', 0.1), ('20260102_000000', 0.234)):
        folder = tmp_path / stamp / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(json.dumps(dict(loss=1.0, ap=ap)) + '\n')
    assert [record['ap'] for record in scalars(tmp_path)] == [0.1, 0.234]
    for n in (9, 10):
        (tmp_path / f'epoch_{n}_backbone.pth').touch()
    (tmp_path / 'epoch_1_iter_57_backbone.pth').touch()  # left by an interruption
    (tmp_path / 'best_knn_backbone.pth').touch()
    assert exports(tmp_path)[-1].name == 'epoch_10_backbone.pth'
    with pytest.raises(StageError, match='wrote no checkpoint'):
        exports(tmp_path / 'none')
