"""Each number of the published recipes is the published one, and the comment beside it names its source: who changes a
number says whose the new one is."""

import ast
import io
import re
import tokenize

import pytest
from mmpretrain.models import VisionTransformer

from helpers import ROOT
from odis_mm import apis
from odis_mm.datasets.transforms import RenderViews

ODIS, GTSA, ALFM = (f'_base_/models/{method}_vits.py' for method in ('odis', 'gtsa', 'alfm'))
OBJECTS, PAIRS, TWO_VIEWS = (f'_base_/datasets/coco_{name}.py' for name in ('objects', 'pairs', 'two_views'))
SCHEDULE, RUNTIME = '_base_/schedules/selfsup_100e.py', '_base_/default_runtime.py'
DETECTOR, DETECTOR_SCHEDULE = 'mask_rcnn/_base_/mask-rcnn_vit_fpn.py', 'mask_rcnn/_base_/schedule_1x.py'
RECIPES = dict(
    o='odis_vits_coco',
    i='odis_vits_in1k',
    g='gtsa_vits_coco',
    a='alfm_vits_coco',
    d='mask_rcnn/mask-rcnn_vits_fpn_1x_coco',
)
SOURCES = re.compile(r'\b(paper|release|ibot|dinov2|derivative|ours)\b')
PIPELINE = 'train_dataloader.dataset.pipeline'
SHAPE = dict(ratio=(3 / 4, 4 / 3))
FLIPPED = dict(SHAPE, flip=0.5)

# The file that holds a value; its recipes; its place, which in the file is named by its end; the value; its source.
# "paper" of ODIS: arXiv 2506.05409, of GTSA and its detector: 2304.08014; "iBOT": 2111.07832, its recipe for ViT-S.
TABLE = [
    (ODIS, 'oi', 'model.backbone.drop_path_rate', 0.1, 'ibot'),
    (ODIS, 'oi', 'model.neck.hidden_channels', 2048, 'ibot'),
    (ODIS, 'oi', 'model.neck.bottleneck_channels', 256, 'ibot'),
    (ODIS, 'oi', 'model.neck.num_prototypes', 8192, 'ibot'),
    (ODIS, 'oi', 'model.neck.norm_trainable', True, 'ibot'),
    (ODIS, 'oi', 'model.head.student_temp', 0.1, 'ibot'),
    (ODIS, 'oi', 'model.head.teacher_temp', dict(start=0.04, end=0.07, warmup_epochs=30), 'ibot'),
    (ODIS, 'oi', 'model.head.center_momentum', 0.9, 'ibot'),
    (ODIS, 'oi', 'model.head.patch_center', 'masked', 'dinov2'),
    (ODIS, 'oi', 'model.momentum', dict(start=0.996, end=1.0), 'ibot'),
    (ODIS, 'oi', 'model.masked_attention', True, 'paper'),
    (ODIS, 'oi', 'model.lambda_patch', 1.0, 'paper'),
    (ODIS, 'oi', 'model.lambda_img', 0.0, 'paper'),
    (GTSA, 'g', 'model.backbone.drop_path_rate', 0.1, 'ibot'),
    (
        GTSA,
        'g',
        'model.neck',
        dict(type='ConvNeck', in_channels=384, hidden_channels=384, out_channels=768, num_blocks=2, residual=True),
        'paper',
    ),
    (
        GTSA,
        'g',
        'model.head.predictor',
        dict(type='ConvNeck', in_channels=768, hidden_channels=768, out_channels=768, num_blocks=1, residual=False),
        'paper',
    ),
    (GTSA, 'g', 'model.head.crop_cells', (10, 4), 'paper'),
    (GTSA, 'g', 'model.head.num_matches', (98, 18), 'paper'),
    (GTSA, 'g', 'model.head.rotation_channels', (768, 768, 128), 'paper'),
    (GTSA, 'g', 'model.head.lambda_crop', 1.0, 'paper'),
    (GTSA, 'g', 'model.head.lambda_correspondence', 0.5, 'paper'),
    (GTSA, 'g', 'model.head.lambda_rotation', 0.5, 'paper'),
    (GTSA, 'g', 'model.head.correspondence_epoch', 11, 'release'),
    (GTSA, 'g', 'model.momentum', dict(start=0.996, end=1.0), 'ibot'),
    (ALFM, 'a', 'model.backbone.drop_path_rate', 0.1, 'ibot'),
    (ALFM, 'a', 'model.neck.hidden_channels', 2048, 'ibot'),
    (ALFM, 'a', 'model.neck.bottleneck_channels', 256, 'ibot'),
    (ALFM, 'a', 'model.neck.num_prototypes', 4096, 'ours'),
    (ALFM, 'a', 'model.head.num_cells', 7, 'ours'),
    (ALFM, 'a', 'model.head.context_temp', 0.1, 'ours'),
    (ALFM, 'a', 'model.head.student_temp', 0.1, 'ibot'),
    (ALFM, 'a', 'model.head.teacher_temp', dict(start=0.04, end=0.07, warmup_epochs=30), 'ibot'),
    (ALFM, 'a', 'model.head.center_momentum', 0.9, 'ibot'),
    (ALFM, 'a', 'model.head.lambda_entropy', 1.0, 'ours'),
    (ALFM, 'a', 'model.head.eps2', 0.05, 'ours'),
    (ALFM, 'a', 'model.momentum', dict(start=0.996, end=1.0), 'ibot'),
    (ALFM, 'a', 'model.lambda_gmsr', 1.0, 'ours'),
    (ALFM, 'a', 'model.lambda_cdlp', 1.0, 'ours'),
    (
        OBJECTS,
        'oi',
        f'{PIPELINE}.SampleViews.views',
        [
            dict(role='global', num=2, size=224, scale=(0.25, 1.0), **FLIPPED),
            dict(role='local', num=10, size=96, scale=(0.05, 0.25), **FLIPPED),
        ],
        'ibot',
    ),
    (OBJECTS, 'oi', f'{PIPELINE}.SampleViews.object_aware', True, 'paper'),
    (OBJECTS, 'oi', f'{PIPELINE}.SampleViews.target_rule', 'random_area', 'paper'),
    (OBJECTS, 'oi', f'{PIPELINE}.SampleViews.min_cover', 0.04, 'derivative'),
    (OBJECTS, 'oi', f'{PIPELINE}.SampleViews.tries', 20, 'paper'),
    (OBJECTS, 'oi', f'{PIPELINE}.SampleViews.local_touch', False, 'ours'),
    (OBJECTS, 'oi', f'{PIPELINE}.SampleViews.local_tries', 10, 'ours'),
    (OBJECTS, 'oia', f'{PIPELINE}.PhotometricViews.brightness', 0.4, 'ibot'),
    (OBJECTS, 'oia', f'{PIPELINE}.PhotometricViews.contrast', 0.4, 'ibot'),
    (OBJECTS, 'oia', f'{PIPELINE}.PhotometricViews.saturation', 0.2, 'ibot'),
    (OBJECTS, 'oia', f'{PIPELINE}.PhotometricViews.hue', 0.1, 'ibot'),
    (OBJECTS, 'oia', f'{PIPELINE}.PhotometricViews.jitter_prob', 0.8, 'ibot'),
    (OBJECTS, 'oia', f'{PIPELINE}.PhotometricViews.gray_prob', 0.2, 'ibot'),
    (OBJECTS, 'oia', f'{PIPELINE}.PhotometricViews.blur_prob', (1.0, 0.1, 0.5), 'ibot'),
    (OBJECTS, 'oiga', f'{PIPELINE}.PhotometricViews.blur_sigma', (0.1, 2.0), 'ibot'),
    (OBJECTS, 'oia', f'{PIPELINE}.PhotometricViews.solarize_prob', (0.0, 0.2, 0.0), 'ibot'),
    (OBJECTS, 'oi', f'{PIPELINE}.BlockMasks.ratio_mean', 0.3, 'ibot'),
    (OBJECTS, 'oi', f'{PIPELINE}.BlockMasks.ratio_spread', 0.2, 'ibot'),
    (OBJECTS, 'oi', f'{PIPELINE}.BlockMasks.skip_prob', 0.5, 'ibot'),
    (OBJECTS, 'oi', f'{PIPELINE}.BlockMasks.aspect', 0.3, 'ibot'),
    (OBJECTS, 'oi', f'{PIPELINE}.BlockMasks.attempts', 10, 'ibot'),
    (PAIRS, 'g', f'{PIPELINE}.RenderViews.interpolation', 'bilinear', 'release'),
    (
        PAIRS,
        'g',
        f'{PIPELINE}.SamplePairViews.views',
        [
            dict(role='global', num=2, size=224, scale=(0.3, 1.0), **SHAPE),
            dict(role='local', num=8, size=96, scale=(0.1, 0.3), **SHAPE),
        ],
        'paper',
    ),
    (PAIRS, 'g', f'{PIPELINE}.SamplePairViews.min_overlap', (0.02, 0.01), 'paper'),
    (PAIRS, 'g', f'{PIPELINE}.SamplePairViews.tries', 50, 'ours'),
    (PAIRS, 'g', f'{PIPELINE}.SamplePairViews.turns', True, 'paper'),
    (PAIRS, 'g', f'{PIPELINE}.PhotometricViews.brightness', 0.8, 'paper'),
    (PAIRS, 'g', f'{PIPELINE}.PhotometricViews.contrast', 0.8, 'paper'),
    (PAIRS, 'g', f'{PIPELINE}.PhotometricViews.saturation', 0.8, 'paper'),
    (PAIRS, 'g', f'{PIPELINE}.PhotometricViews.hue', 0.2, 'paper'),
    (PAIRS, 'g', f'{PIPELINE}.PhotometricViews.jitter_prob', 0.8, 'paper'),
    (PAIRS, 'g', f'{PIPELINE}.PhotometricViews.gray_prob', 0.2, 'paper'),
    (PAIRS, 'g', f'{PIPELINE}.PhotometricViews.blur_prob', (0.2, 0.2, 0.2), 'paper'),
    (PAIRS, 'g', f'{PIPELINE}.PhotometricViews.solarize_prob', (0.0, 0.0, 0.0), 'paper'),
    (
        TWO_VIEWS,
        'a',
        f'{PIPELINE}.SampleViews.views',
        [dict(role='global', num=2, size=224, scale=(0.25, 1.0), **FLIPPED)],
        'ibot',
    ),
    (SCHEDULE, 'oiga', 'optim_wrapper.optimizer.lr', 5e-4, 'ibot'),
    (SCHEDULE, 'oiga', 'optim_wrapper.optimizer.weight_decay', 0.04, 'ibot'),
    (SCHEDULE, 'oiga', 'optim_wrapper.optimizer.betas', (0.9, 0.999), 'release'),
    (SCHEDULE, 'oiga', 'optim_wrapper.constructor', 'SelfSupOptimWrapperConstructor', 'ours'),
    (SCHEDULE, 'oiga', 'optim_wrapper.clip_grad.max_norm', 3.0, 'ibot'),
    (SCHEDULE, 'oiga', 'optim_wrapper.clip_grad.per_tensor', True, 'release'),
    (SCHEDULE, 'oiga', 'auto_scale_lr', dict(enable=True, base_batch_size=256), 'ibot'),
    (SCHEDULE, 'oiga', 'param_scheduler.LinearLR.end', 10, 'ibot'),
    (SCHEDULE, 'oiga', 'param_scheduler.CosineAnnealingLR.begin', 10, 'ibot'),
    (SCHEDULE, 'oiga', 'param_scheduler.CosineAnnealingLR.eta_min', 1e-6, 'ibot'),
    (SCHEDULE, 'g', 'train_cfg.max_epochs', 100, 'paper'),
    (SCHEDULE, 'oa', 'train_cfg.max_epochs', 100, 'ours'),
    ('odis_vits_in1k.py', 'i', 'train_cfg.max_epochs', 800, 'ibot'),
    (RUNTIME, 'oia', 'default_hooks.schedule', dict(weight_decay_end=0.4, freeze_prototypes_epochs=1), 'ibot'),
    (RUNTIME, 'g', 'default_hooks.schedule', dict(weight_decay_end=0.4, freeze_prototypes_epochs=0), 'ibot'),
    (DETECTOR, 'd', 'model.backbone.out_indices', [3, 5, 7, 11], 'paper'),
    (DETECTOR, 'd', 'model.backbone.drop_path_rate', 0.05, 'paper'),
    (DETECTOR_SCHEDULE, 'd', 'optim_wrapper.optimizer', dict(type='AdamW', lr=5e-5, weight_decay=0.05), 'paper'),
    (DETECTOR_SCHEDULE, 'd', 'optim_wrapper.constructor', 'DetectorLayerDecay', 'paper'),
    (DETECTOR_SCHEDULE, 'd', 'param_scheduler.LinearLR.end', 1000, 'paper'),
    (DETECTOR_SCHEDULE, 'd', 'auto_scale_lr', dict(enable=True, base_batch_size=8), 'paper'),
]


def value_at(cfg, place):
    """Elements of a list are named by their type."""
    for name in place.split('.'):
        cfg = next(part for part in cfg if part['type'] == name) if isinstance(cfg, (list, tuple)) else cfg[name]
    return cfg


@pytest.mark.parametrize('letter', RECIPES)
def test_numbers_are_the_published_ones(letter):
    cfg = apis.load_config(RECIPES[letter])
    rows = [(place, value) for _, recipes, place, value, _ in TABLE if letter in recipes]
    for place, value in rows:
        found = value_at(cfg, place)
        if isinstance(value, dict):
            found = {key: found.get(key) for key in value}
        assert found == value, f'{RECIPES[letter]}: {place} is {found}, published: {value}'
    assert len(rows) > (3 if letter == 'd' else 20)


def test_numbers_that_stand_in_no_line_of_the_recipes():
    """Sizes of the networks by their names; bicubic views of the DINO family; global batches, told at the top."""
    for arch, size in {'deit-small': (384, 12, 6), 'base': (768, 12, 12), 'large': (1024, 24, 16)}.items():
        zoo = VisionTransformer.arch_zoo[arch]
        assert (zoo['embed_dims'], zoo['num_layers'], zoo['num_heads']) == size
    assert RenderViews().interpolation == 'bicubic'
    cfg = apis.load_config(RECIPES['d'])
    assert cfg.param_scheduler[1].milestones == [8, 11]
    assert cfg.train_cfg.max_epochs == 12 and cfg.model.neck[1].out_channels == 256
    for letter, ranks, batch in (('o', 8, 512), ('i', 8, 1024), ('g', 8, 512), ('a', 8, 512)):
        told = re.search(
            r'global batch of (\d+) \((\d+) ranks x (\d+)', (ROOT / 'configs' / f'{RECIPES[letter]}.py').read_text()
        )
        per_rank = apis.load_config(RECIPES[letter]).train_dataloader.batch_size
        assert [int(number) for number in told.groups()] == [batch, ranks, per_rank] and ranks * per_rank == batch


def provenance(file):
    """The nearest comment that names a source, lower-case, for each name of a config file: at the end of the value's
    first or last line, above it, or that of what it is part of. And the names that have one of their own."""
    text = (ROOT / 'configs' / file).read_text()
    lines = ['', *(line.lstrip() for line in text.splitlines())]
    comments = {
        token.start[0]: token.string.lower()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    nearest, own = {}, set()

    def named(first, last):
        above = first - 1
        while lines[above].startswith('#'):
            above -= 1
        texts = comments.get(first, ''), comments.get(last, ''), ' '.join(comments[i] for i in range(above + 1, first))
        return next((said for said in texts if SOURCES.search(said)), '')

    def visit(node, name, said):
        for child in ast.iter_child_nodes(node):
            here, source = name, said
            if isinstance(child, (ast.keyword, ast.Assign)):
                key = child.arg if isinstance(child, ast.keyword) else ast.unparse(child.targets[0])
                here = (*name, re.sub(r"\w+\['(\w+)'\]", r'\1', key))  # steps['RenderViews'].interpolation
                source = named(child.lineno, child.end_lineno) or said
                nearest['.'.join(here)] = source
                if (
                    source != said
                    and not isinstance(child.value, (ast.Call, ast.List))
                    and key not in ('type', '_base_')
                ):
                    own.add('.'.join(here))
            elif isinstance(child, ast.Call):
                kind = next((word for word in child.keywords if word.arg == 'type'), child)
                if isinstance(node, ast.List) and kind is not child:
                    here = (*name, kind.value.value)
                elif isinstance(child.func, ast.Attribute) and isinstance(child.func.value, ast.Subscript):
                    here = (*name, child.func.value.slice.value)  # steps['PhotometricViews'].merge
                source = named(child.lineno, child.lineno) or named(kind.lineno, kind.lineno) or said
            visit(child, here, source)

    visit(ast.parse(text), (), '')
    return nearest, own


@pytest.mark.parametrize('file', sorted({row[0] for row in TABLE}))
def test_comments_name_the_source(file):
    nearest, own = provenance(file)
    known = set()
    for _, _, place, _, source in (row for row in TABLE if row[0] == file):
        parts = place.split('.')
        ends = ('.'.join(parts[start:]) for start in range(len(parts)))
        found = ([name for name in nearest if f'.{name}'.endswith(f'.{end}')] for end in ends)
        (name,) = next(names for names in found if names)
        known.add(name)
        said = nearest[name]
        assert source in SOURCES.findall(said), f'{file}: {name} is of {source}, but its comment says {said!r}'
    assert not own - known, f'{file}: numbers with a source that the table does not have: {own - known}'
