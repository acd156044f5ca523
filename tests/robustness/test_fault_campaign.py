"""The fault campaign in small, that it finds what it is there to find, and the command line where nothing can be
written."""

import random
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers import forked

pytestmark = pytest.mark.slow


def program(folder: Path) -> None:
    from odis_mm.engine.loops import ResumableEpochLoop
    from robustness import fault_campaign as campaign

    campaign.main(
        ['--work-dir', str(folder / 'small'), '--kills', '4', '--disk-full', '2', '--corrupt', '2', '--signals', '1']
    )
    print('---')
    nothing_to_write_to(campaign, folder / 'small/campaign.py', folder / 'run')
    print('---')
    ResumableEpochLoop.restore = lambda self, loaded: None  # a resume that forgets the random numbers
    campaign.main(
        ['--work-dir', str(folder / 'broken'), '--kills', '0', '--disk-full', '0', '--corrupt', '0', '--signals', '1']
    )


def nothing_to_write_to(campaign, config: Path, run: Path) -> None:
    """Prints code and last line of: stopped by a signal, then --resume with a full disk, without permission, and with
    both repaired."""
    stop, quiet, limit = (
        campaign.Event('signal', share=0.9, signal='SIGTERM'),
        campaign.Event('none'),
        campaign.Event('limit', share=0.5),
    )
    small = campaign.Campaign(run.parent / 'unused', 0, 0, 0, 0)
    small.config, small.log, small.checkpoint_bytes = config, run.parent / 'attempt.log', 2**19
    small.check = lambda *args: None
    train = campaign.cli.main
    elsewhere = [
        '--cfg-options',
        'default_hooks.checkpoint.out_dir=/sys/kernel',
    ]  # where not even root can make a folder
    for name, event, more in (
        ('stopped', stop, []),
        ('full', limit, []),
        ('no permission', quiet, elsewhere),
        ('repaired', quiet, []),
    ):
        campaign.cli.main = lambda argv: train(argv + more)
        code = small.attempt(run, event)
        print(f'{name}: {code}: {small.log.read_text().rstrip().splitlines()[-1]}')
    campaign.cli.main = train
    print(sorted(path.name for path in run.glob('epoch_?*.pth') if 'backbone' not in path.name))


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp('campaign')
    done = forked(partial(program, folder), folder)
    assert done.returncode == 1 and done.stdout.count('---\n') == 2, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.split('---\n')


def test_disturbed_runs_equal_the_undisturbed_one(parts):
    count = {kind: int(number) for kind, number in re.findall(r'^\| (.+) \| (\d+) \|$', parts[0], re.MULTILINE)}
    assert 'FAILED' not in parts[0] and count['disturbed runs compared'] >= 1
    assert count['all SIGKILL at'] == 2 and count['all SIGKILL inside'] >= 2 and count['all disk full'] == 2
    assert count['all damaged:'] == 2 and count['warned, and took an older checkpoint'] >= 2
    assert sum(number for kind, number in count.items() if kind.endswith('exit code 75')) >= 1


def test_a_full_disk_and_no_permission_end_in_one_sentence(parts):
    stopped, full, forbidden, repaired, files = parts[1].strip().splitlines()
    good = r'last good checkpoint: \S+/epoch_1_iter_6\.pth'
    assert stopped.startswith('stopped: 75: ')
    assert re.fullmatch(
        rf'full: 2: error: could not write a checkpoint to \S+/run: File too large; make room .* \({good}\)\.', full
    )
    refusals = 'Permission denied|Operation not permitted|Read-only file system|No such file or directory'
    assert re.fullmatch(
        rf'no permission: 2: error: could not write a checkpoint to /sys/kernel/run: ({refusals}); make room or fix '
        rf'the '
        rf'permissions.*\({good}\)\.',
        forbidden,
    )
    assert repaired.startswith('repaired: 0: ') and files == "['epoch_3.pth', 'epoch_4.pth', 'epoch_5.pth']"


def test_a_resume_that_forgets_is_found_out(parts):
    assert re.search(r'^FAILED: run_1 differs from the undisturbed run: state_dict\.', parts[2], re.MULTILINE)


def test_differences():
    from robustness.fault_campaign import differences

    a = dict(w=torch.tensor([1.0, float('nan')]), n=[1, (2, 'x')])
    assert differences(a, dict(w=a['w'].clone(), n=[1, (2, 'x')])) == []
    assert differences(a, dict(w=a['w'] + 1e-7, n=[1, (3, 'x')])) == ['w', 'n[1][0] is 2 and 3']
    assert differences(dict(w=torch.tensor([0.0])), dict(w=torch.tensor([-0.0]))) == ['w'], 'bit for bit'
    assert differences(torch.ones(2), torch.ones(2, dtype=torch.float64), 'w') == ['w']
    assert differences([1], [1, 2]) and differences(dict(a=1), dict(b=1)) and differences(1, 1.0)


@pytest.mark.parametrize('kind', ['cut', 'flipped', 'zeroed', 'empty', 'garbage', 'missing'])
def test_each_damage_is_one(tmp_path, kind):
    from odis_mm.engine.resume import damage
    from robustness.fault_campaign import spoil

    torch.save(torch.randn(10000), tmp_path / 'a.pth')
    spoil(tmp_path / 'a.pth', kind, random.Random(0))
    assert damage(tmp_path / 'a.pth')
