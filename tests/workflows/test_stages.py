"""Stages that resume, what is read from a run's folder, and verdicts that follow from numbers."""

import argparse
import json

import pytest

from odis_mm import apis
from odis_mm.config import ConfigError, check_schedule
from odis_mm.workflows import demo, evidence, quickstart
from odis_mm.workflows.stages import Stages, detector_ap, newest_export, scalars


def test_a_stage_runs_once_and_refuses_other_settings(tmp_path, capsys):
    calls = []

    def work(folder):
        calls.append(folder)
        return dict(value=3)

    assert Stages(tmp_path, 2).run('a', dict(lr=1), work)['value'] == 3
    assert Stages(tmp_path, 2).run('a', dict(lr=1), work)['value'] == 3
    assert len(calls) == 1 and 'a: done before' in capsys.readouterr().out
    with pytest.raises(ValueError, match='other settings'):
        Stages(tmp_path, 2).run('a', dict(lr=2), work)


def test_a_failed_stage_is_run_again(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Stages(tmp_path, 1).run('a', {}, lambda folder: 1 / 0)
    assert Stages(tmp_path, 1).run('a', {}, lambda folder: dict(ok=1))['ok'] == 1


def test_no_stage_is_begun_for_a_command_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr('multiprocessing.parent_process', lambda: argparse.Namespace(is_alive=lambda: False))
    with pytest.raises(RuntimeError, match='a is not begun: the command that asked for it is gone'):
        Stages(tmp_path, 1).run('a', {}, lambda folder: dict(ok=1))


def test_a_failing_command_shows_its_end(tmp_path, capfd, monkeypatch):
    with pytest.raises(RuntimeError, match=r"^no config 'no_such_config'.* \(of: odis_mm train no_such_config "):
        Stages(tmp_path, 1).train('no_such_config', tmp_path, {})
    monkeypatch.setenv('ODIS_MM_DEBUG', '1')
    with pytest.raises(RuntimeError, match='ended with exit code 1; its last lines are above'):
        Stages(tmp_path, 1).train('no_such_config', tmp_path, {})
    assert 'Traceback' in capfd.readouterr().err


@pytest.mark.parametrize('config', demo.METHODS.values())
@pytest.mark.parametrize('length, warmup', [(2, 1), (3, 1), (4, 3), (60, 3)])
def test_a_short_run_has_a_short_warmup(length, warmup, config, tmp_path):
    asked = []
    stages = Stages(tmp_path, 1)
    stages.train = lambda config, folder, options, env: (
        asked.append((config, options)),
        (folder / 'epoch_1_backbone.pth').touch(),
    )
    demo.pretrain(stages, 'a', config, tmp_path, length)
    _, options = asked[0]
    cfg = apis.load_config(config, options)
    check_schedule(cfg)
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin == warmup


@pytest.mark.parametrize('iters, warmup', [(20, 10), (51, 50), (300, 50)])
def test_a_short_detector_run_has_a_short_warmup(iters, warmup, tmp_path, monkeypatch):
    asked = []
    stages = Stages(tmp_path, 1)
    stages.train = lambda config, folder, options, env: asked.append((config, options))
    monkeypatch.setattr(demo, 'detector_ap', lambda folder: {})
    demo.finetune(stages, 'a', tmp_path, None, iters, seed=0)
    config, options = asked[0]
    cfg = apis.load_config(config, options)
    check_schedule(cfg)
    assert (
        cfg.param_scheduler[0].end
        == cfg.param_scheduler[1].begin
        == warmup
        == cfg.param_scheduler[1].end - cfg.param_scheduler[1].T_max
    )


def test_one_epoch_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match='^1 epochs of pretraining are no run: ask for two or more'):
        demo.pretrain(Stages(tmp_path, 1), 'a', 'odis_demo', tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_metrics_come_from_the_last_evaluation(tmp_path):
    with pytest.raises(RuntimeError, match='was not evaluated'):
        detector_ap(tmp_path)
    for stamp, ap in (('20260101_000000', 0.1), ('20260102_000000', 0.234)):
        folder = tmp_path / stamp / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(
            json.dumps(dict(loss=1.0, step=1)) + '\n' + json.dumps({'coco/bbox_mAP': ap, 'step': 2}) + '\n'
        )
    assert detector_ap(tmp_path) == {'box AP': 23.4} and len(scalars(tmp_path)) == 4


def test_newest_export_is_by_number(tmp_path):
    for n in (9, 10):
        (tmp_path / f'epoch_{n}_backbone.pth').touch()
    assert newest_export(tmp_path).name == 'epoch_10_backbone.pth'
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        newest_export(tmp_path / 'none')


def test_transfer_line_must_be_there(tmp_path):
    log = tmp_path / 'a' / 'a.log'
    log.parent.mkdir()
    log.write_text('2026 - mmengine - INFO - starting\n')
    with pytest.raises(RuntimeError, match='did not arrive'):
        quickstart.transfer_line(tmp_path)
    log.write_text('2026 - mmengine - INFO - backbone <- x: 53 matched\n')
    assert quickstart.transfer_line(tmp_path) == 'backbone <- x: 53 matched'


@pytest.mark.parametrize(
    'ours, theirs, words', [((5, 6), (3, 4), 'is above every'), ((3, 4), (5, 6), 'BELOW'), ((3, 6), (4, 5), 'overlap')]
)
def test_the_report_says_what_the_seeds_bear_out(ours, theirs, words):
    def runs(values):
        return [dict.fromkeys(evidence.AP, v) for v in values]

    rows = ['ODIS', 'iBOT', evidence.RANDOM]
    text = evidence.report(
        rows,
        {r: dict(object_token=50.0, box_pool=40.0) for r in rows},
        {'ODIS': runs(ours), 'iBOT': runs((1, 9)), evidence.RANDOM: runs(theirs)},
        argparse.Namespace(seeds=[0, 1], epochs=1, train_images=10, finetune_iters=5),
        [],
    )
    line = next(line for line in text.splitlines() if line.startswith('- ODIS against random'))
    assert words in line
