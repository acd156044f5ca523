"""What is answered before anything heavy is imported: help, and paths that cannot be used."""

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from helpers import ROOT, environment
from odis_mm import apis
from odis_mm.cli import checkpoints, common
from odis_mm.datasets import demo
from odis_mm.engine.hooks import KNNHook, RegionProxyHook
from odis_mm.evaluation import knn
from odis_mm.objects import FORMATS
from odis_mm.recipes import METHODS
from odis_mm.transfer import LAYOUTS
from odis_mm.utils.errors import ConfigError
from odis_mm.utils.paths import check_out, default_work_dir

# calls each command line of argv[1], a json list, in one process that may not import what takes seconds
CALLS = """
import contextlib, io, json, sys
sys.argv[0] = 'odis-mm'
import odis_mm
from odis_mm.cli import COMMANDS, main
said = []
lines = json.loads(sys.argv[1])
for line in lines or [['--help'], *([name, '--help'] for name in COMMANDS)]:
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(line)
    except SystemExit as stop:
        code = stop.code or 0
    heavy = [name for name in ('torch', 'numpy', 'mmengine', 'mmpretrain', 'matplotlib') if name in sys.modules]
    said.append([line, code, out.getvalue(), err.getvalue(), heavy])
print(json.dumps(said))
"""


def call(folder, lines=()):
    run = subprocess.run(
        [sys.executable, '-c', CALLS, json.dumps(lines)],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-1500:]
    return json.loads(run.stdout)


def test_help_imports_nothing_heavy(tmp_path):
    for line, code, out, err, heavy in call(tmp_path):
        assert (code, err, heavy) == (0, '', []), line
        assert out.startswith(f'usage: odis-mm {line[0] if len(line) > 1 else "COMMAND"}'), out[:80]


AT_TORCH = """
import os, sys

class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            sys.exit(os.environ.get('OMP_WAIT_POLICY'))

sys.meta_path.insert(0, AtTorch())
import odis_mm
"""


@pytest.mark.parametrize('own, found', [('', 'PASSIVE'), ('ACTIVE', 'ACTIVE')])
def test_threads_that_wait_leave_the_cores_to_others(own, found):
    """Told before torch is loaded, which reads it then; what the user has set stays."""
    env = {k: v for k, v in environment().items() if k != 'OMP_WAIT_POLICY'} | ({'OMP_WAIT_POLICY': own} if own else {})
    run = subprocess.run([sys.executable, '-c', AT_TORCH], env=env, capture_output=True, text=True)
    assert run.stderr.strip() == found


def test_the_usage_of_predict_names_the_checkpoint_as_optional(tmp_path):
    (_, code, out, _, _), (_, wrong, _, err, _) = call(tmp_path, [['predict', '--help'], ['predict', 'run']])
    assert code == 0 and 'CONFIG_OR_DIR [CHECKPOINT] IMAGES [IMAGES ...]' in ' '.join(out.split())
    assert wrong == 2 and err.startswith('error: the following arguments are required: IMAGES, --out.\n')


def test_wrong_commands_and_options_end_in_one_sentence(tmp_path):
    lines = [['pretrai'], ['nothing', 'of', 'this'], ['pretrain', '--dta', 'photos'], []]
    lines += [['compare', '--data', '.', '--starts', 'ODIS'], ['compare', 'quickstart', '--minutes', '60']]
    typo, other, option, bare, starts, minutes = call(tmp_path, lines)
    assert starts[1] == minutes[1] == 2
    assert 'error: --starts is for a plan' in starts[3] and 'error: --minutes is for --data' in minutes[3]
    assert typo[1] == other[1] == option[1] == bare[1] == 2
    assert typo[3] == "error: no command 'pretrai'; did you mean 'pretrain'? odis-mm --help lists the commands.\n"
    assert other[3] == "error: no command 'nothing'; odis-mm --help lists the commands.\n"
    assert option[3].splitlines() == [
        'error: the following arguments are required: --data.',
        '`odis-mm pretrain --help` lists the options.',
    ]
    assert bare[3].startswith('usage: odis-mm COMMAND')


def test_numbers_that_an_option_does_not_take(tmp_path):
    wrong = (
        ('pretrain --data .', '--size 0', 'must be 1 or more, got 0'),
        ('pretrain --data .', '--steps 3', 'must be 4 or more, got 3'),
        ('finetune --data .', '--steps 0', 'must be 2 or more, got 0'),
        ('finetune --data .', '--size -5', 'must be 16 or more, got -5'),
        ('find-objects . --out a.json --source classic', '--top 0', 'must be 1 or more, got 0'),
        (
            'find-objects . --out a.json --source classic',
            '--size many',
            "must be a whole number of 1 or more, got 'many'",
        ),
        ('find-objects . --out a.json --source classic', '--max-bad-share 5', 'must be a number from 0 to 1, got 5'),
        ('inspect odis_demo', '--images 0', 'must be 1 or more, got 0'),
        ('views odis_demo', '--images -1', 'must be 1 or more, got -1'),
        ('predict run images --out a', '--batch 0', 'must be 1 or more, got 0'),
        ('knn a.pth --data .', '--workers -1', 'must be 0 or more, got -1'),
        ('knn a.pth --data .', '--ks 0', 'must be 1 or more, got 0'),
        ('stats', '--limit 0', 'must be 1 or more, got 0'),
        ('verify', '--workers -1', 'must be 0 or more, got -1'),
        ('compare quickstart', '--jobs 0', 'must be 1 or more, got 0'),
        ('demo', '--num-train 0', 'must be 1 or more, got 0'),
        ('benchmark odis_demo', '--repeats 0', 'must be 1 or more, got 0'),
        ('rotation odis_demo a.pth --data-root .', '--size 0', 'must be 1 or more, got 0'),
    )
    found = call(tmp_path, [f'{line} {option}'.split() for line, option, _ in wrong])
    for (line, option, sentence), (_, code, out, err, heavy) in zip(wrong, found):
        name = option.split()[0]
        hint = f'`odis-mm {line.split()[0]} --help` lists the options.'
        assert err == f'error: {name}: {sentence}.\n{hint}\n' and code == 2 and not out and not heavy


def test_places_where_out_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder').mkdir()
    Image.new('L', (4, 4)).save(tmp_path / 'folder' / '1.png')
    torch.save({}, tmp_path / 'a.pth')
    (tmp_path / 'detector.py').touch()
    commands = (
        'find-objects folder --source classic --out {}.json',
        'views gtsa_demo --out {}.png',
        'inspect gtsa_demo --out {}',
        'predict detector.py a.pth folder --out {}',
        'knn a.pth --data . --out {}.json',
        'features a.pth --ann-file a.json --out {}.npz',
        'benchmark gtsa_demo --out {}.json',
    )
    lines = [command.format('file/below/it').split() for command in commands]
    for line, code, out, err, heavy in call(tmp_path, lines):
        name, where = line[-1], tmp_path / 'file'
        told = f'error: --out {name} cannot be written below {where} (it is no folder): name another place.\n'
        assert (code, out, err, heavy) == (2, '', told, []), line
    lines = ['views gtsa_demo --out folder', 'inspect gtsa_demo --out file']
    lines += [
        'verify --data folder --report folder',
        'transfer a.pth file/b.pth',
        'transfer a.pth folder',
        'transfer a.pth file --to huggingface',
        'transfer a.pth --grid 4x4 --to timm',
    ]
    file, folder, *others = call(tmp_path, [line.split() for line in lines])
    assert [(err, heavy) for *_, err, heavy in others] == [
        ('error: --report folder is a folder: name a file to write.\n', []),
        (f'error: OUT file/b.pth cannot be written below {tmp_path}/file (it is no folder): name another place.\n', []),
        ('error: OUT folder is a folder: name a file to write.\n', []),
        ('error: OUT file is a file: name a folder to write.\n', []),
        ('error: --to and --grid are about the file to write: name it as OUT, behind a.pth.\n', []),
    ]
    assert file[3] == 'error: --out folder is a folder: name a file to write.\n'
    assert folder[3] == 'error: --out file is a file: name a folder to write.\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pth', 'detector.py', 'file', 'folder']


def test_a_folder_that_takes_no_files_is_named(tmp_path, monkeypatch):
    def closed(dir):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(tempfile, 'TemporaryFile', closed)  # to root all folders are open
    for folder in (False, True):
        with pytest.raises(ConfigError, match=rf'--out \S*/a/b cannot be written below {tmp_path} \(Permission denied'):
            check_out(tmp_path / 'a' / 'b', folder)


def test_wrong_paths_are_refused_before_anything_heavy_is_imported(tmp_path, coco_folder):
    for name in ('empty', 'photos'):
        (tmp_path / name).mkdir()
    (tmp_path / 'photos' / '1.png').write_bytes(b'')
    torch.save({}, tmp_path / 'a.pth')
    save_file(dict(a=torch.zeros(9)), tmp_path / 'a.safetensors')
    for name in ('a.pth', 'a.safetensors'):
        (tmp_path / f'cut_{name}').write_bytes((tmp_path / name).read_bytes()[:-4])
    (tmp_path / 'none.pth').write_bytes(b'')
    (tmp_path / 'page.pth').write_text('<html>not found</html>')
    with zipfile.ZipFile(tmp_path / 'other.pth', 'w') as archive:
        archive.writestr('a.npy', 'numbers')
    (tmp_path / 'run').mkdir()
    for folder in ('used', 'work_dirs/finetune/photos'):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / 'iter_3.pth').touch()
    (tmp_path / 'pretrain.py').write_text('a = 1')
    (tmp_path / 'detector').mkdir()
    (tmp_path / 'detector' / 'detector.py').write_text('a = 1')
    (tmp_path / 'done').mkdir()
    (tmp_path / 'done' / 'predictions.json').touch()
    (tmp_path / 'linked').symlink_to('photos')
    for folder, name in (('used', 'pretrain.py'), ('work_dirs/finetune/photos', 'detector.py')):
        (tmp_path / folder / name).write_text("model = dict(backbone=dict(init_cfg=dict(checkpoint='first.pth')))")
    (tmp_path / 'half.json').write_text('{"images": [')
    photos, data = str(tmp_path / 'photos'), str(coco_folder)
    gone = 'checkpoint gone.pth does not exist'
    config = 'a.pth is a checkpoint where a config is expected'
    cases = [
        ('pretrain --data gone', 'data folder gone does not exist.'),
        ('pretrain --data a.pth', 'a.pth is a file where a folder of data is expected'),
        ('pretrain --data empty', 'no image in or below empty (looked for .jpg'),
        (f'pretrain --data {photos} --images gone', 'data folder gone does not exist.'),
        (f'pretrain --data {photos} --boxes gone.json', 'annotation file gone.json does not exist, neither'),
        (f'pretrain --data {photos} --boxes half.json', 'annotation file half.json is not valid JSON (Expecting'),
        (f'pretrain --data {photos} --init gone.pth', gone),
        (f'pretrain --data {photos} --init none.pth', 'is empty (0 bytes)'),
        (f'pretrain --data {photos} --init cut_a.pth', 'cut_a.pth is truncated or no checkpoint: its end is missing'),
        (f'pretrain --data {photos} --init cut_a.safetensors', 'or no checkpoint: it has 96 bytes and tells of 100;'),
        (f'pretrain --data {photos} --init page.pth', 'its contents are not those of torch.save'),
        (f'pretrain --data {photos} --init other.pth', 'it is a zip archive of something else (a.npy)'),
        (
            f'pretrain --data {photos} --init a.pth --work-dir used',
            'used holds checkpoints of a run: for another one add --work-dir used_2; to',
        ),
        ('finetune --data photos', 'work_dirs/finetune/photos holds checkpoints of a run'),
        (f'pretrain --data {photos} --init pretrain.py', 'checkpoint pretrain.py is a Python file: name the .pth'),
        (f'pretrain --data {photos} --init run', 'checkpoint run is a folder: name the file in it'),
        (f'pretrain --data {photos} --init a.pth --work-dir used --resume', 'in used started from first.pth and'),
        ('finetune --data photos --init a.pth --resume', 'photos started from first.pth and goes on'),
        (
            f'pretrain --data {photos} --work-dir run --resume',
            '--resume: there is no checkpoint in run; leave --resume',
        ),
        (f'finetune --data {data} --work-dir new --resume', '--resume: there is no checkpoint in new; leave --resume'),
        (f'finetune --data {data} --detector mask-rcn', "no config 'mask-rcn'"),
        ('finetune --data photos --resume', 'photos started from first.pth, which is gone'),
        ('finetune --data gone', 'data folder gone does not exist.'),
        ('finetune --data empty', 'no image in or below empty'),
        (f'finetune --data {data} --train gone.json', 'annotation file gone.json does not exist, neither'),
        (f'finetune --data {data} --init gone.pth', gone),
        (f'finetune --data {data} --detector a.pth', config),
        ('predict a.pth photos --out out', 'a.pth is a checkpoint: name the config of a detector first'),
        ('predict gone photos --out out', 'there is no config or work dir gone: name that of the training'),
        ('predict run photos --out out', 'run holds 0 configs (*.py): name the one of the detector.'),
        ('predict detector/detector.py a.pth gone.png --out out', 'there is no file or folder gone.png.'),
        ('predict gone.py a.pth photos --out out', "no config 'gone.py'"),
        ('predict . photos --out out', 'pretrain.py is the config of a pretraining, whose backbone is no detector yet'),
        (
            'predict detector/detector.py a_backbone.pth photos --out out',
            'a_backbone.pth is a pretrained backbone, no detector:',
        ),
        ('predict detector/detector.py cut_a.pth photos --out out', 'cut_a.pth is truncated or no checkpoint'),
        ('predict gone.py a.pth --out out', 'no images are named'),
        ('predict --out out detector/detector.py gone.pth photos', gone),
        ('predict detector/detector.py --out out gone.pth photos', gone),
        ('predict detector/detector.py a.pth photos --out out --threshold 30', 'the threshold of scores is 30: set'),
        ('predict detector/detector.py a.pth photos --out out --threshold nan', 'the threshold of scores is nan: set'),
        ('predict detector/detector.py a.pth photos --out done', 'done holds the predictions of an earlier run: name'),
        ('predict detector/detector.py a.pth photos --out photos', 'the pictures of --out photos would lie in photos,'),
        ('predict detector/detector.py a.pth photos --out linked/out', 'of --out linked/out would lie in photos,'),
        ('views a.pth', config),
        ('views used', 'used is a folder where a config is expected: name the file in it, such as used/pretrain.py.'),
        ('views pretrain.py --out a.txt', '--out a.txt: let its name end in one of .png, .jpg,'),
        ('train a.pth', config),
        (
            'train odis_demoo',
            "no config 'odis_demoo': it is neither a file nor a shipped recipe; did you mean 'odis_demo'?",
        ),
        ('train odis_demo --init gone.pth', gone),
        ('train odis_demo --resume gone.pth', gone),
        ('train odis_demo --resume cut_a.pth', 'its end is missing'),
        ('test a.pth a.pth', config),
        ('test mask-rcnn_demo gone.pth', gone),
        ('compare --data gone', 'data folder gone does not exist.'),
        ('compare a.pth', config),
        (f'compare --data {data} --work-dir half.json', '--work-dir half.json is a file: name a folder to write.'),
        (f'compare --data {data} --init gone.pth', gone),
        ('transfer gone.pth', gone),
        ('knn gone.pth --data photos', gone),
        ('regions gone.pth --data photos', gone),
        (
            'features a.pth --ann-file a.json --out a.npz --sheet a.xyz',
            '--sheet a.xyz: let its name end in one of .png',
        ),
        ('features gone.pth --ann-file a.json --out a.npz', gone),
        ('rotation gtsa_demo gone.pth --data-root photos', gone),
        ('find-objects gone --out a.json --source classic', 'data folder gone does not exist.'),
        ('find-objects photos --out a.json --source attention --checkpoint gone.pth', gone),
        ('find-objects photos --out a.json --source import --annotations half.json', 'half.json is not valid JSON'),
        ('find-objects photos --out a.json --source classic --truth half.json', 'half.json is not valid JSON'),
        ('inspect a.pth', config),
        ('replay odis_demo gone.pth', gone),
        ('benchmark a.pth', config),
    ]
    for (line, code, out, err, heavy), (_, sentence) in zip(call(tmp_path, [line.split() for line, _ in cases]), cases):
        assert code == 2 and err.startswith('error: ') and sentence in err, (line, err)
        assert err.count('\n') == 1 and not out and not heavy, (line, err, heavy)


def test_names_in_help_are_those_of_the_code():
    assert set(common.AMP) == set(apis.AMP_WRAPPERS)
    assert common.METHODS == METHODS
    assert common.LAYOUTS == tuple(LAYOUTS)
    assert common.FORMATS == tuple(FORMATS)
    assert common.KS == tuple(knn.KS)
    assert (common.DEMO, common.DEMO_ROOT) == (demo.DEFAULTS, demo.DEFAULT_ROOT)


def test_hooks_and_commands_call_the_same_thing_by_the_same_name(capsys):
    for hook, command in ((RegionProxyHook, checkpoints.regions_main), (KNNHook, checkpoints.knn_main)):
        with pytest.raises(SystemExit):
            command(['--help'])
        options = set(re.findall(r'--([a-z-]+)', capsys.readouterr().out))
        given = set(inspect.signature(hook).parameters) - {'data_root', 'per_image', 'num_workers', 'kwargs'}
        assert {name.replace('_', '-') for name in given} <= options, hook


@pytest.mark.parametrize(
    'data, name',
    [
        ('data/bccd', 'bccd'),
        ('data/bccd/', 'bccd'),
        ('/elsewhere/my photos', 'my photos'),
        ('bccd/images', 'bccd_images'),
        ('data/chess/train2017', 'chess_train2017'),
        ('.', 'here'),
        ('here/../cells', 'cells'),
        ('/', 'data'),
    ],
)
def test_each_data_set_has_a_work_dir_of_its_own(data, name, tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    assert default_work_dir('pretrain', data).parts == ('work_dirs', 'pretrain', name)
