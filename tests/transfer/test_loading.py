"""Checkpoints: read without running code, written whole or not at all, loaded completely or refused."""

import multiprocessing
import os
import pickle
import resource
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import WEIGHT_INITIALIZERS
from mmpretrain.registry import MODELS
from torch import nn

import odis_mm  # noqa: F401
from helpers import TINY_ARCH, Foreign, stock_vit
from odis_mm.transfer import (
    CheckpointError,
    FileWriteError,
    atomic_save,
    load_backbone,
    read_checkpoint,
    read_meta,
    read_vit,
    resize_positions,
    save_backbone,
    to_timm,
)


@pytest.fixture
def exported(tmp_path):
    model = stock_vit()
    path = tmp_path / 'iter_5_backbone.pth'
    save_backbone(path, model.state_dict(), dict(epoch=1, method='ODIS'))
    return model, path


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, write, needle',
    [
        ('missing.pth', lambda p: None, 'does not exist'),
        ('empty.pth', lambda p: p.write_bytes(b''), '0 bytes'),
        ('text.pth', lambda p: p.write_text('not a checkpoint'), 'truncated or no checkpoint'),
        ('no_tensors.pth', lambda p: torch.save(dict(meta=dict(epoch=3)), p), 'no tensors'),
        ('list.pth', lambda p: torch.save([torch.ones(2)], p), 'no tensors'),
        ('foreign.pth', lambda p: torch.save(dict(state_dict=dict(a=torch.ones(2)), extra=Foreign()), p), 'run code'),
        ('pickle.pth', lambda p: p.write_bytes(pickle.dumps(Foreign(), protocol=2)), 'run code'),
        ('module.pth', lambda p: torch.save(nn.Linear(2, 2), p), 'run code'),
    ],
)
def test_unusable_files_are_refused_in_one_sentence(tmp_path, monkeypatch, name, write, needle):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    write(path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert needle in message and name in message and '\n' not in message and len(message) < 500, message
    assert not (tmp_path / 'should_not_exist').exists()


@pytest.mark.parametrize('keep', [0.2, 0.6, 0.98])
def test_truncated_file(exported, tmp_path, keep):
    data = exported[1].read_bytes()
    path = tmp_path / 'cut.pth'
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match='truncated') as caught:
        read_checkpoint(path)
    assert '\n' not in str(caught.value)


def test_export_is_tensors_and_plain_values_only(exported):
    model, path = exported
    content = torch.load(path, weights_only=True)
    assert set(content) == {'state_dict', 'meta'} and content['meta'] == dict(epoch=1, method='ODIS')
    assert list(content['state_dict']) == [f'backbone.{k}' for k in model.state_dict()]
    assert all(torch.equal(v, content['state_dict'][f'backbone.{k}']) for k, v in model.state_dict().items())


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    model = stock_vit()
    safetensors.save_file(model.state_dict(), tmp_path / 'a.safetensors')
    report = load_backbone(other := stock_vit(seed=1), tmp_path / 'a.safetensors')
    assert report.prefix == '' and torch.equal(other.pos_embed, model.pos_embed)
    (tmp_path / 'b.safetensors').write_bytes(b'12345678')
    with pytest.raises(CheckpointError, match='b.safetensors'):
        read_checkpoint(tmp_path / 'b.safetensors')


def mmengine_checkpoint(path):
    """What mmengine's runner writes: the weights, and the logged histories as pickled objects over numpy arrays."""
    history = HistoryBuffer()
    for i in range(3):
        history.update(i / 3)
    torch.save(
        dict(
            state_dict={'backbone.a': torch.ones(2)},
            meta=dict(iter=3),
            message_hub=dict(log_scalars=OrderedDict(loss=history)),
        ),
        path,
    )


def test_own_checkpoints_of_mmengine_load_restricted(tmp_path):
    """mmengine#1655: torch >= 2.6 refuses what mmengine's runner pickles: no --resume on upstream 0.10.7."""
    mmengine_checkpoint(tmp_path / 'iter_3.pth')
    content = torch.load(tmp_path / 'iter_3.pth', weights_only=True)
    history = content['message_hub']['log_scalars']['loss']
    assert history.mean() == pytest.approx(1 / 3) and history.statistics('max') == pytest.approx(2 / 3)
    with torch.serialization.safe_globals([HistoryBuffer]):  # as onedl-mmengine loads: it takes the name off again
        pass
    assert list(read_checkpoint(tmp_path / 'iter_3.pth')) == ['backbone.a']


class Sneaky:
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_allowing_histories_does_not_allow_getattr(tmp_path):
    torch.save(dict(a=Sneaky()), tmp_path / 'sneaky.pth')
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / 'sneaky.pth')


# ---- writing -------------------------------------------------------------------------------------


def save_where_files_end_at_100_kb(path) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as on a full disk
    try:
        atomic_save(dict(a=torch.zeros(500_000)), path)
    except FileWriteError as error:
        return str(error)
    return 'written'


def test_failed_save_keeps_the_old_file(tmp_path, exported):
    _, path = exported
    before = path.read_bytes()
    with multiprocessing.get_context('fork').Pool(1) as pool:  # the limit is for the rest of a process
        said = pool.apply(save_where_files_end_at_100_kb, (str(path),))
    assert 'full' in said and path.name in said
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_interrupted_save_leaves_nothing(tmp_path, monkeypatch, exported):
    _, path = exported
    before = path.read_bytes()

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_save(dict(a=torch.zeros(3)), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_save_into_nowhere_and_without_permission(tmp_path, monkeypatch):
    with pytest.raises(FileWriteError, match='does not exist'):
        atomic_save(dict(a=torch.zeros(3)), tmp_path / 'nowhere' / 'a.pth')

    def refuse(*args, **kwargs):  # root may write anywhere, so permission is denied by hand
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('tempfile.mkstemp', refuse)
    with pytest.raises(FileWriteError, match='no permission'):
        atomic_save(dict(a=torch.zeros(3)), tmp_path / 'a.pth')


@pytest.mark.parametrize(
    'state, meta, needle',
    [({}, None, 'no tensor'), (dict(a=3), None, "'a' is a int"), (dict(a=torch.ones(1)), dict(path=os), 'plain')],
)
def test_only_tensors_and_plain_values_are_saved(tmp_path, state, meta, needle):
    with pytest.raises(CheckpointError, match=needle):
        save_backbone(tmp_path / 'a.pth', state, meta)
    assert not os.listdir(tmp_path)


# ---- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'teacher.backbone.', 'module.backbone.'])
def test_everything_matches(prefix):
    source, target = stock_vit(), stock_vit(seed=1)
    state = {prefix + k: v for k, v in source.state_dict().items()}
    if 'backbone.' in prefix:
        state[prefix.replace('backbone.', 'neck.') + 'fc.weight'] = torch.ones(2, 2)
    if prefix.startswith('teacher'):  # the student is there, too, and is not what is wanted
        state.update({f'backbone.{k}': torch.zeros_like(v) for k, v in source.state_dict().items()})
    report = load_backbone(target, state)
    assert not report.expected_missing and not report.unexpected and not report.resized
    assert set(report.matched) == set(target.state_dict()) and len(state) == len(report.matched) + report.outside
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(source(images)[0], target(images)[0])


@pytest.mark.parametrize(
    'other, needle',
    [
        (dict(arch=dict(TINY_ARCH, embed_dims=32, feedforward_channels=48)), 'width 24 instead of 32'),
        (dict(arch=dict(TINY_ARCH, num_layers=3)), 'depth 2 instead of 3'),
        (dict(arch=dict(TINY_ARCH, feedforward_channels=96)), 'MLP width 48 instead of 96'),
        (dict(patch_size=4), 'patch size 8 instead of 4'),
        (dict(final_norm=False), 'set final_norm=True'),
        (dict(with_cls_token=False), 'cls_token'),
        (dict(layer_scale_init_value=1e-5), 'gamma'),
    ],
)
def test_another_architecture_is_refused_and_changes_nothing(exported, other, needle):
    target = stock_vit(seed=1, **other)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_backbone(target, exported[1])
    message = str(caught.value)
    assert needle in message and exported[1].name in message and '\n' not in message, message
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_dropped_layer_scale_is_refused():
    """A LayerScale that finds no place ruins the AP (dinov2#65): the file's tensors are named."""
    with pytest.raises(CheckpointError, match='gamma'):
        load_backbone(stock_vit(), stock_vit(layer_scale_init_value=1e-2).state_dict())


def test_a_convnet_is_refused():
    with pytest.raises(CheckpointError, match='no backbone'):
        load_backbone(stock_vit(), {'layer1.0.conv1.weight': torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match='no plain ViT'):
        load_backbone(stock_vit(), {'backbone.layer1.0.conv1.weight': torch.ones(2, 2)})


def test_nan_is_refused():
    state = stock_vit().state_dict()
    state['layers.1.attn.qkv.bias'][3] = float('nan')
    with pytest.raises(CheckpointError, match='NaN or Inf in layers.1.attn.qkv.bias'):
        load_backbone(stock_vit(), state)


@pytest.mark.parametrize('dtype', ['int8', 'float8_e4m3fn'])
def test_quantised_weights_are_refused(dtype):
    if not hasattr(torch, dtype):
        pytest.skip('a type of later versions of torch')
    state = {key: value.to(getattr(torch, dtype)) for key, value in stock_vit().state_dict().items()}
    with pytest.raises(CheckpointError, match=f'8 bits .torch.{dtype}. in .*: it is quantised'):
        load_backbone(stock_vit(), state)
    with pytest.raises(CheckpointError, match='it is quantised'):
        read_vit(state)


@pytest.mark.parametrize('wrappers', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
def test_wrappers_of_the_whole_model_are_taken_off(wrappers):
    state = {f'{wrappers}{key}': value for key, value in stock_vit().state_dict().items()}
    assert not load_backbone(stock_vit(), state).expected_missing


def test_allowed_exceptions_and_lenient_loading():
    state = stock_vit().state_dict()
    state['object_tokens'] = torch.zeros(1, 1, 24)
    del state['ln1.bias']
    with pytest.raises(CheckpointError, match='object_tokens.*ln1.bias'):
        load_backbone(stock_vit(), state)
    report = load_backbone(stock_vit(), state, allow_missing=['ln1.*'], allow_unexpected=['object_*'])
    assert report.expected_missing == ('ln1.bias',) and report.unexpected == ('object_tokens',)
    assert '1 expected-missing, 1 unexpected' in str(report) and '\n' not in str(report)
    assert load_backbone(stock_vit(), state, strict=False).unexpected == ('object_tokens',)


@pytest.mark.parametrize('size', [64, (48, 80), 24])
def test_positions_resized_with_explicit_size(exported, size):
    """A model built for another image size computes what the original, resampling on the fly, computes at that size."""
    source, path = exported
    target = stock_vit(img_size=size, seed=1)
    report = load_backbone(target, path)
    assert report.resized['pos_embed'][0] == (1, 17, 24)
    assert ('what is saved of it has the coarser grid' in str(report)) == (size == 24)
    h, w = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, 3, h, w)
    torch.testing.assert_close(target(images)[0], source(images)[0], atol=1e-6, rtol=0)
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])  # the class slot is not resampled


def test_class_slot_of_positions():
    grid = torch.randn(1, 16, 6)
    cls = torch.randn(1, 1, 6)
    assert torch.equal(resize_positions(torch.cat((cls, grid), 1), (4, 4), 0), grid)
    added = resize_positions(grid, (4, 4), 1)
    assert torch.equal(added[:, 1:], grid) and not added[:, 0].any()
    with pytest.raises(ValueError, match='2 leading token slots'):
        resize_positions(torch.cat((cls, cls, grid), 1), (4, 4), 1)
    with pytest.raises(ValueError, match='square'):
        resize_positions(torch.randn(1, 14 * 10 - 8, 6), (4, 4), 1)


# ---- initialisation ------------------------------------------------------------------------------


def fingerprint(module):
    return {k: (v.double().sum().item(), v.double().square().sum().item()) for k, v in module.state_dict().items()}


def test_init_weights_does_not_draw_anew(exported):
    """mmengine initialises after the constructor: pos_embed and MLPs would be drawn over (dinov3#112)."""
    source, path = exported
    cfg = dict(type='VisionTransformer', arch=TINY_ARCH, img_size=32, patch_size=8, out_type='featmap')
    cfg['init_cfg'] = dict(type='VerifiedPretrained', checkpoint=str(path))
    wrapper = nn.ModuleDict(dict(a=MODELS.build(cfg)))
    wrapper['a'].init_weights()
    assert fingerprint(wrapper['a']) == fingerprint(source)
    wrapper['a'].init_weights()  # a second call, as a wrapper module may make, changes nothing
    assert fingerprint(wrapper['a']) == fingerprint(source)


def test_no_checkpoint_means_random_initialisation_and_says_so(caplog, monkeypatch):
    lines = []
    monkeypatch.setattr('odis_mm.transfer.initializer.print_log', lambda text, **kwargs: lines.append(text))
    cfg = dict(
        type='VisionTransformer',
        arch=TINY_ARCH,
        img_size=32,
        patch_size=8,
        init_cfg=dict(type='VerifiedPretrained', checkpoint=None),
    )
    model = MODELS.build(cfg)
    model.init_weights()
    assert model.pos_embed.std() > 0.01
    assert len(lines) == 1 and 'random initialisation' in lines[0]


def test_missing_file_through_init_cfg(tmp_path):
    cfg = Config(dict(type='VerifiedPretrained', checkpoint=str(tmp_path / 'gone.pth')))
    with pytest.raises(CheckpointError, match='gone.pth does not exist'):
        WEIGHT_INITIALIZERS.build(cfg._cfg_dict)(stock_vit())


# ---- other libraries -----------------------------------------------------------------------------


@pytest.mark.parametrize('layer_scale', [0.0, 0.1])
def test_timm_computes_the_same_features(exported, tmp_path, layer_scale):
    timm_vit = pytest.importorskip('timm.models.vision_transformer')
    source = stock_vit(layer_scale_init_value=layer_scale)
    save_backbone(tmp_path / 'a.pth', source.state_dict())
    model = timm_vit.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        num_classes=0,
        init_values=layer_scale or None,
    ).eval()
    model.load_state_dict(to_timm(read_checkpoint(tmp_path / 'a.pth')), strict=True)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), source(images)[0], atol=1e-5, rtol=0)


def test_timm_has_no_name_for_other_tensors():
    with pytest.raises(ValueError, match='object_tokens'):
        to_timm({'backbone.object_tokens': torch.ones(1)})


@pytest.mark.parametrize('read', [read_checkpoint, read_meta])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_files_that_are_not_there_are_told_apart(tmp_path, read, suffix):
    """By whichever of the two readers comes first."""
    (tmp_path / f'empty{suffix}').write_bytes(b'')
    (tmp_path / f'broken{suffix}').write_bytes(b'no checkpoint')
    (tmp_path / f'folder{suffix}').mkdir()
    for name, words in (
        ('gone', 'does not exist; check the path'),
        ('empty', 'is empty'),
        ('broken', 'is truncated or no'),
        ('folder', 'is a folder: name the file in it'),
    ):
        with pytest.raises(CheckpointError, match=words):
            read(tmp_path / f'{name}{suffix}')


class OnGPU(torch.Tensor):
    """Values of another device: not to be compared with others before they are moved to them."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.equal and not all(isinstance(x, cls) for x in args):
            raise RuntimeError('Expected all tensors to be on the same device')
        moved = func is torch.Tensor.cpu or (func is torch.Tensor.to and isinstance(args[1], torch.Tensor))
        out = super().__torch_function__(func, types, args, kwargs or {})
        return out.as_subclass(torch.Tensor) if moved else out


def test_tensors_of_a_gpu_are_loaded_and_compared(exported):
    model, _ = exported
    fresh = stock_vit(seed=1)
    report = load_backbone(fresh, {key: value.as_subclass(OnGPU) for key, value in model.state_dict().items()})
    assert len(report.matched) == len(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in fresh.state_dict().items())
