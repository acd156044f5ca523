"""Every layout: recognised, brought there and back bit for bit, and computing what timm computes."""

import argparse
import json
import re
from contextlib import nullcontext

import pytest
import timm
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from helpers import Foreign, noisy_vit, random_images, stock_vit
from odis_mm.cli import checkpoints as commands
from odis_mm.config import load_config
from odis_mm.models import ObjectViT
from odis_mm.recipes import backbone_settings
from odis_mm.recipes.starting import start_from
from odis_mm.transfer import (
    LAYOUTS,
    CheckpointError,
    build_backbone,
    build_timm,
    build_vit,
    convert,
    load_backbone,
    prove,
    read_checkpoint,
    read_meta,
    read_vit,
    resize_positions,
    save_backbone,
    transfer,
)
from odis_mm.transfer.positions import rope_periods

SHAPE = dict(embed_dim=32, depth=3, num_heads=2, mlp_ratio=2, num_classes=0)
ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)


def timm_vit(seed=0, img_size=32, patch_size=8, **kwargs):
    torch.manual_seed(seed)
    model = VisionTransformer(img_size=img_size, patch_size=patch_size, **{**SHAPE, **kwargs})
    with torch.no_grad():
        for parameter in model.parameters():  # nothing stays at a special value, so that a swap would show
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def ours(layer_scale=0.0, registers=0):
    state = stock_vit(ARCH, layer_scale_init_value=layer_scale).state_dict()
    return {**state, **({'register_tokens': torch.randn(1, registers, 32)} if registers else {})}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@torch.no_grad()
def tokens(state, images, grid=None):
    return build_vit(state, 2, grid)(images)[-1]


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'target, layer_scale, registers',
    [
        ('odis_mm', 0, 0),
        ('odis_mm', 0.1, 3),
        ('mmpretrain', 0.1, 0),
        ('timm', 0, 0),
        ('timm', 0.1, 0),
        ('huggingface', 0, 0),
        ('huggingface', 0.1, 0),
        ('huggingface', 0.1, 3),
        ('mmseg', 0, 0),
    ],
)
def test_round_trip_is_bit_for_bit(target, layer_scale, registers):
    state = ours(layer_scale, registers)
    there = convert(state, target)
    assert not there.dropped and not there.changed and there.comparable
    back = read_vit(there.tensors)
    assert set(back.dropped) <= {'embeddings.mask_token'}  # which a strict load of Hugging Face's models asks for
    assert same(back.state, state) and not back.changed and not back.outside
    assert same(convert(back, 'odis_mm').tensors, {f'backbone.{key}': value for key, value in state.items()})


def test_what_detectron2_holds_comes_back_bit_for_bit():
    first = convert(ours(), 'detectron2')
    assert set(first.dropped) == {'cls_token', 'ln1.weight', 'ln1.bias'} and not first.comparable
    kept = read_vit(first.tensors)
    assert kept.layout == 'detectron2' and torch.equal(kept.state['pos_embed'], ours()['pos_embed'][:, 1:])
    second = convert(kept, 'detectron2')
    assert not second.dropped and same(read_vit(second.tensors).state, kept.state)
    assert torch.equal(second.tensors['backbone.net.pos_embed'][:, 1:], first.tensors['backbone.net.pos_embed'][:, 1:])


@pytest.mark.parametrize('target', ['mmpretrain', 'mmseg', 'detectron2'])
def test_registers_are_dropped_by_name_where_there_is_no_place(target):
    conversion = convert(ours(registers=2), target)
    assert 'no place' in conversion.dropped['register_tokens'] and not conversion.comparable
    assert 'dropped: ' in str(conversion) and 'register_tokens' in str(conversion)


@pytest.mark.parametrize('target', ['mmseg', 'detectron2'])
def test_a_layer_scale_is_never_lost(target):
    """Dropped, it ruins the AP; multiplied into the layer before it, it computes the same."""
    state = ours(0.3)
    conversion = convert(state, target)
    assert len([how for how in conversion.changed.values() if 'multiplied' in how]) == 6
    folded = {**state, **conversion.state, 'pos_embed': state['pos_embed']}
    for key in [key for key in folded if 'gamma' in key]:
        del folded[key]
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tokens(folded, images), tokens(state, images), atol=2e-5, rtol=0)


# ---- timm computes the same ----------------------------------------------------------------------


@pytest.mark.parametrize('size', [(224, 224), (160, 288)])
@pytest.mark.parametrize(
    'settings', [{}, dict(init_values=0.3), dict(init_values=0.3, reg_tokens=4, no_embed_class=True)]
)
def test_timm_to_ours_and_back_at(size, settings):
    model = timm_vit(img_size=size, patch_size=16, **settings)
    grid = size[0] // 16, size[1] // 16
    state = convert(read_vit(model.state_dict(), source_grid=grid), 'odis_mm').state
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model.forward_features(images)
        torch.testing.assert_close(tokens(state, images, grid), expected, atol=2e-5, rtol=0)
        again = build_timm(convert(state, 'timm', source_grid=grid).tensors, 2, grid)
    assert same(again.state_dict(), model.state_dict())


@torch.no_grad()
@pytest.mark.parametrize('grid', [(14, 14), (10, 18)])
def test_positions_are_resampled_to_an_explicit_grid(grid):
    state, images = ours(), torch.randn(1, 3, grid[0] * 8, grid[1] * 8)
    conversion = convert(state, 'timm', grid=grid)
    assert 'resampled' in conversion.changed['pos_embed'] and f'{grid[0]} x {grid[1]}' in str(conversion)
    assert torch.equal(conversion.tensors['pos_embed'], resize_positions(state['pos_embed'], grid, 1))
    expected = stock_vit(ARCH)(images)[-1]  # mmpretrain resamples on the fly
    torch.testing.assert_close(
        build_timm(conversion.tensors, 2, grid).forward_features(images), expected, atol=2e-5, rtol=0
    )
    assert prove(conversion, conversion.tensors, 2, grid).difference < 1e-4


# ---- files of other projects, as they write them --------------------------------------------------


def dino(model):  # a training checkpoint: settings and epoch beside student and teacher
    state = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    return dict(
        student={f'module.{k}': torch.zeros_like(v) for k, v in state.items()},
        epoch=3,
        args=argparse.Namespace(arch='vit_small', lr=5e-4),
        teacher={**state, 'head.mlp.0.weight': torch.ones(2, 2)},
    )


def ibot(model):
    state = {re.sub(r'ls(\d)\.gamma', r'gamma_\1', k): v for k, v in model.state_dict().items()}
    return dict(state_dict={**{f'module.{k}': v for k, v in state.items()}, 'module.masked_embed': torch.zeros(1, 32)})


def dinov2(model):  # blocks in chunks of two, registers without a position
    state = {
        re.sub(r'^blocks\.(\d+)', lambda m: f'blocks.{int(m[1]) // 2}.{m[1]}', k): v
        for k, v in model.state_dict().items()
    }
    state['register_tokens'], position = state.pop('reg_token'), state.pop('pos_embed')
    return {**state, 'pos_embed': torch.cat((torch.zeros(1, 1, 32), position), 1), 'mask_token': torch.zeros(1, 32)}


def mae(model):
    return dict(
        model={
            **model.state_dict(),
            'mask_token': torch.zeros(1, 1, 32),
            'decoder_embed.weight': torch.ones(8, 32),
            'decoder_pos_embed': torch.zeros(1, 17, 8),
            'decoder_blocks.0.norm1.weight': torch.ones(8),
        }
    )


def gtsa(model):
    state = model.state_dict()
    return dict(
        state_dict={
            **{f'module.base_encoder.{k}': torch.zeros_like(v) for k, v in state.items()},
            **{f'module.momentum_encoder.{k}': v for k, v in state.items()},
            'module.predictor.0.weight': torch.ones(2),
        },
        epoch=1,
    )


def huggingface(model):
    names = {
        'norm1': 'layernorm_before',
        'norm2': 'layernorm_after',
        'mlp.fc1': 'intermediate.dense',
        'mlp.fc2': 'output.dense',
        'attn.proj': 'attention.output.dense',
    }
    out = {'classifier.weight': torch.ones(5, 32), 'vit.pooler.dense.weight': torch.ones(32, 32)}
    for key, value in model.state_dict().items():
        for old, new in (
            ('patch_embed.proj', 'embeddings.patch_embeddings.projection'),
            ('pos_embed', 'embeddings.position_embeddings'),
            ('cls_token', 'embeddings.cls_token'),
        ):
            key = key.replace(old, new)
        key = re.sub('^norm', 'layernorm', key)
        block = re.match(r'blocks\.(\d+)\.(.+)\.(weight|bias)$', key)
        if block and block[2] == 'attn.qkv':
            for part, piece in zip(('query', 'key', 'value'), value.chunk(3)):
                out[f'vit.encoder.layer.{block[1]}.attention.attention.{part}.{block[3]}'] = piece
        else:
            out['vit.' + (f'encoder.layer.{block[1]}.{names[block[2]]}.{block[3]}' if block else key)] = value
    return out


FOREIGN = {
    'DINO': (dino, {}, {'head': 1}, 0),
    'iBOT': (ibot, dict(init_values=0.3), {}, 1),
    'MAE': (mae, {}, {}, 4),
    'GTSA': (gtsa, {}, {'base_encoder': 0}, 0),
    'DINOv2': (dinov2, dict(init_values=0.3, reg_tokens=4, no_embed_class=True), {}, 1),
    'Hugging Face ViT': (huggingface, {}, {'classifier': 1}, 1),
}


@pytest.mark.parametrize('kind', FOREIGN)
def test_files_of_other_projects_are_recognised_and_arrive(kind, tmp_path):
    write, settings, outside, dropped = FOREIGN[kind]
    model = timm_vit(**settings)
    torch.save(write(model), tmp_path / 'theirs.pth')
    conversion, proof = transfer(tmp_path / 'theirs.pth', tmp_path / 'ours.pth', 'odis_mm', heads=2)
    source = conversion.source
    assert source.dialect.startswith(kind) and len(source.dropped) == dropped
    assert set(outside) <= set(source.outside) and all(source.outside[part] >= count for part, count in outside.items())
    total = len(read_checkpoint(tmp_path / 'theirs.pth'))
    assert total == len(source.raw) + len(source.dropped) + sum(source.outside.values())
    assert proof.read_back == len(conversion.tensors) and proof.difference < 1e-4
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        backbone = build_backbone(tmp_path / 'ours.pth')  # its heads are in the file's meta
        torch.testing.assert_close(backbone(images)[-1], model.forward_features(images), atol=2e-5, rtol=0)
        if not model.num_reg_tokens:  # and straight into a detector's backbone
            target = stock_vit(ARCH, layer_scale_init_value=float('init_values' in settings), seed=3)
            assert kind.split()[-1] in str(
                load_backbone(target, tmp_path / 'theirs.pth', allow_unexpected=['object_tokens'])
            )
            torch.testing.assert_close(target(images)[-1], model.forward_features(images), atol=2e-5, rtol=0)


@pytest.mark.parametrize('final_norm', [True, False])
def test_the_norm_of_a_classifier_of_mmpretrain_is_left_out(final_norm, tmp_path):
    classifier = stock_vit(ARCH, final_norm=final_norm)
    classifier.ln2 = nn.LayerNorm(32)  # of out_type='avg_featmap'
    torch.save({f'backbone.{name}': tensor for name, tensor in classifier.state_dict().items()}, tmp_path / 'a.pth')
    images, module = random_images(2, 32), stock_vit(ARCH, seed=1, final_norm=final_norm)
    assert 'ln2.weight, ln2.bias: norm of a classifier' in str(load_backbone(module, tmp_path / 'a.pth'))
    with torch.no_grad():
        for vit in (module, build_backbone(tmp_path / 'a.pth', heads=2)):
            torch.testing.assert_close(vit(images)[-1], classifier(images)[-1])


def test_a_resnet_arrives(tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model('resnet50').eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    torch.save(model.state_dict(), tmp_path / 'r50.pth')
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            build_backbone(tmp_path / 'r50.pth')(images)[-1], model.forward_features(images), atol=1e-4, rtol=1e-4
        )


# ---- what is written -----------------------------------------------------------------------------


@pytest.fixture
def export(tmp_path):
    save_backbone(tmp_path / 'epoch_1_backbone.pth', ours(0.1), dict(num_heads=2, method='ODIS'))
    return tmp_path / 'epoch_1_backbone.pth'


@pytest.mark.parametrize(
    'target, name',
    [
        ('timm', 'a.safetensors'),
        ('timm', 'a.pth'),
        ('huggingface', 'folder'),
        ('detectron2', 'a.pth'),
        ('mmseg', 'a.pth'),
        ('mmpretrain', 'a.safetensors'),
        ('odis_mm', 'a.pth'),
    ],
)
def test_written_files_hold_tensors_only_and_are_proved(export, tmp_path, target, name):
    out = tmp_path / 'new' / name
    conversion, proof = transfer(export, out, target)
    file = out / 'model.safetensors' if target == 'huggingface' else out
    assert same(read_checkpoint(file), conversion.tensors) and str(proof).startswith(
        f'proof: {len(conversion.tensors)} tensors read back'
    )
    assert (proof.difference is None) == (target == 'detectron2')
    assert sorted(p.name for p in file.parent.iterdir() if p.name.startswith('.')) == []
    if target == 'huggingface':
        config = json.loads((file.parent / 'config.json').read_text())
        assert (config['model_type'], config['num_attention_heads'], config['hidden_size'], config['image_size']) == (
            'dinov2',
            2,
            32,
            32,
        )
        assert config['layer_norm_eps'] == 1e-6  # their default of 1e-12 computes something else


@torch.no_grad()
def test_mmseg_names_compute_the_same_in_torchs_own_attention():
    """mmseg's blocks hold a torch.nn.MultiheadAttention: norm, attention, norm, two linear layers."""
    state = ours()
    theirs = {k.removeprefix('backbone.'): v for k, v in convert(state, 'mmseg').tensors.items()}
    images = torch.randn(2, 3, 32, 32)
    x = (
        F.conv2d(images, theirs['patch_embed.projection.weight'], theirs['patch_embed.projection.bias'], stride=8)
        .flatten(2)
        .mT
    )
    x = torch.cat((theirs['cls_token'].expand(2, -1, -1), x), 1) + theirs['pos_embed']

    def norm(x, name):
        return F.layer_norm(x, (32,), theirs[f'{name}.weight'], theirs[f'{name}.bias'], 1e-6)

    for i in range(3):
        block = f'layers.{i}.'
        attention = nn.MultiheadAttention(32, 2, batch_first=True)
        attention.load_state_dict(
            {k[len(f'{block}attn.attn.') :]: v for k, v in theirs.items() if k.startswith(f'{block}attn.attn.')}
        )
        y = norm(x, f'{block}ln1')
        x = x + attention(y, y, y)[0]
        y = F.gelu(
            F.linear(
                norm(x, f'{block}ln2'), theirs[f'{block}ffn.layers.0.0.weight'], theirs[f'{block}ffn.layers.0.0.bias']
            )
        )
        x = x + F.linear(y, theirs[f'{block}ffn.layers.1.weight'], theirs[f'{block}ffn.layers.1.bias'])
    torch.testing.assert_close(norm(x, 'ln1'), tokens(state, images), atol=2e-5, rtol=0)


# ---- refusals ------------------------------------------------------------------------------------


def without(name):
    return {k: v for k, v in ours().items() if k != name}


NAN = {**ours(), 'layers.1.ln1.bias': torch.full((32,), float('nan'))}


@pytest.mark.parametrize(
    'state, needle',
    [
        ({'layer1.0.conv1.weight': torch.ones(1), 'stem.conv.weight': torch.ones(1)}, 'no plain ViT of a known layout'),
        ({k: v for k, v in ours().items() if not k.startswith('layers.1.')}, 'of 3 blocks it lacks 1'),
        (without('layers.2.attn.proj.bias'), 'block 2 has no attn.proj.bias'),
        (without('pos_embed'), 'no position embedding'),
        (NAN, 'NaN or Inf in layers.1.ln1.bias'),
        ({**ours(), 'layers.0.attn.q_norm.weight': torch.ones(16)}, 'layers.0.attn.q_norm.weight'),
        ({**ours(), 'layers.1.ln1.weight': torch.ones(16)}, 'contradicts itself: ln1.weight'),
        ({**ours(), 'pos_embed': torch.ones(1, 17, 16)}, 'contradicts itself'),
        ({**timm_vit().state_dict(), 'pos_embed': torch.ones(1, 15, 32)}, '--source-grid'),
        (
            {**{k: v for k, v in huggingface(timm_vit()).items() if not k.endswith('0.attention.attention.key.bias')}},
            'it lacks layers.0.attn.key.bias',
        ),
    ],
)
def test_wrong_files_are_refused_in_one_sentence(state, needle, tmp_path):
    torch.save(state, tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError) as caught:
        transfer(tmp_path / 'bad.pth', tmp_path / 'out.pth', 'timm', heads=2)
    message = str(caught.value)
    assert needle in message and 'bad.pth' in message and '\n' not in message and len(message) < 600, message
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(
    'name, write',
    [
        ('pickle.pth', lambda p: torch.save(dict(model=ours(), extra=Foreign()), p)),
        ('text.safetensors', lambda p: p.write_text('no')),
        ('cut.pth', lambda p: (torch.save(ours(), p), p.write_bytes(p.read_bytes()[:9000]))),
    ],
)
def test_hostile_and_truncated_files(name, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=name) as caught:
        transfer(tmp_path / name, tmp_path / 'out.pth', 'timm', heads=2)
    assert (
        '\n' not in str(caught.value)
        and not (tmp_path / 'should_not_exist').exists()
        and not (tmp_path / 'out.pth').exists()
    )


def test_deit3_of_mmpretrain_is_no_plain_vit(tmp_path):
    settings = dict(type='mmpretrain.DeiT3', arch=ARCH, patch_size=8, out_type='raw')
    deit3 = MODELS.build(dict(settings, img_size=32))
    deit3.eval()  # mmpretrain's returns nothing
    with torch.no_grad():
        for parameter in deit3.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.save({f'backbone.{name}': tensor for name, tensor in deit3.state_dict().items()}, tmp_path / 'a.pth')
    module = stock_vit(ARCH, layer_scale_init_value=1e-5)
    for read in (build_backbone, lambda file: load_backbone(module, file)):
        with pytest.raises(CheckpointError, match="a.pth is of mmpretrain's DeiT3 .* leave ln2"):
            read(tmp_path / 'a.pth')
    assert 'pos_embed' in load_backbone(MODELS.build(dict(settings, img_size=64)), tmp_path / 'a.pth').resized
    images = random_images(2, 32)
    with torch.no_grad():
        state = {**deit3.state_dict(), 'pos_embed': F.pad(deit3.pos_embed, (0, 0, 1, 0))}
        assert not torch.allclose(tokens(state, images), deit3(images)[-1], atol=1e-3)
        state.update({name.replace('.ln1', '.ln2'): state[name] for name in state if '.ln1' in name})
        torch.testing.assert_close(tokens(state, images), deit3(images)[-1])  # the one difference


def test_requests_that_make_no_sense(export, tmp_path):
    for arguments, needle in (
        (dict(target='keras'), 'no layout'),
        (dict(out='a.onnx'), '.pth or .safetensors'),
        (dict(out=export.name), 'the source itself'),
        (dict(heads=3), '3 attention heads do not divide'),
        (dict(source_grid=(3, 3)), 'which are not 3 x 3'),
    ):
        with pytest.raises(CheckpointError, match=needle):
            transfer(export, tmp_path / arguments.pop('out', 'b.pth'), **{'target': 'timm', **arguments})
    save_backbone(tmp_path / 'silent.pth', ours())
    with pytest.raises(CheckpointError, match='say it'):  # 32 wide: the heads cannot be inferred
        transfer(tmp_path / 'silent.pth', tmp_path / 'b.pth', 'timm')


def test_what_does_not_prove_leaves_no_file(export, tmp_path, monkeypatch):
    from odis_mm.transfer import export as module

    def tamper(path, conversion, meta, write=module.write_file):
        conversion.tensors['blocks.0.attn.qkv.bias'] = conversion.tensors['blocks.0.attn.qkv.bias'].flip(0)
        write(path, conversion, meta)

    monkeypatch.setattr(module, 'write_file', tamper)
    with pytest.raises(CheckpointError, match='does not read back as it was written: layers.0.attn.qkv.bias'):
        transfer(export, tmp_path / 'b.pth', 'timm')
    assert [p.name for p in tmp_path.iterdir()] == [export.name]


@pytest.mark.parametrize(
    'options, told',
    [
        (dict(final_norm=False), 'has no final norm, and transformers ViTModel'),
        (dict(img_size=(32, 72), layer_scale_init_value=1e-5), 'no square, and transformers Dinov2Model'),  # 36 patches
    ],
)
def test_models_of_hugging_face_that_would_compute_something_else_are_refused(options, told):
    vit = stock_vit(ARCH, **options)
    with pytest.raises(CheckpointError, match=told):
        convert(vit.state_dict(), 'huggingface', source_grid=tuple(vit.patch_resolution))


def test_features_that_differ_are_refused():
    state = ours()
    conversion = convert(state, 'timm')
    wrong = convert({**state, 'layers.0.attn.qkv.weight': state['layers.0.attn.qkv.weight'] * 1.5}, 'timm')
    assert prove(conversion, conversion.tensors, 2).difference < 1e-4
    with pytest.raises(CheckpointError, match='computes other features'):
        prove(type(conversion)(**{**vars(wrong), 'source': conversion.source}), wrong.tensors, 2)


def test_every_layout_has_its_own_signature():
    rotary = ours(0.1, 4)
    for key in [key for key in rotary if key.endswith('qkv.bias')]:
        rotary[key].chunk(3)[1].zero_()  # keys have none
    del rotary['pos_embed']
    rotary['rope.periods'] = rope_periods(16)
    for name in LAYOUTS:
        read = read_vit(convert(rotary if 'dinov3' in name else ours(), name).tensors)
        expected = {'mmpretrain': 'odis_mm'}.get(name, name)  # the same names
        assert read.layout == expected


# ---- the command ---------------------------------------------------------------------------------


def test_the_tool_says_what_became_of_every_tensor(export, tmp_path, capsys):
    commands.transfer_main([str(export)])
    said = capsys.readouterr().out
    assert 'odis_mm or mmpretrain (they share these names), under backbone.*' in said
    assert '3 blocks, 32 wide, patch 8, 4 x 4 positions' in said
    commands.transfer_main([str(export), str(tmp_path / 'a.pth'), '--to', 'timm', '--grid', '6x10'])
    said = capsys.readouterr().out
    assert (
        'to timm' in said
        and 'resampled [1, 17, 32] -> [1, 61, 32], 6 x 10 patches' in said
        and 'features of a 48 x 80 probe' in said
    )
    with pytest.raises(SystemExit) as stop:
        commands.transfer_main([str(tmp_path / 'gone.pth')])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith('error: checkpoint ')
    with pytest.raises(SystemExit):
        commands.transfer_main([str(export), str(tmp_path / 'b.pth'), '--to', 'timm', '--grid', 'large'])
    assert '--grid' in capsys.readouterr().err


@torch.no_grad()
def test_moco_v3_has_heads_of_its_own(tmp_path):
    """Its ViT-S has twelve heads in place of six, which no tensor tells."""
    model = timm_vit(patch_size=16, embed_dim=384, depth=1, num_heads=12)
    state = {f'module.momentum_encoder.{key}': value for key, value in model.state_dict().items()}
    state |= {f'module.{part}.head.0.weight': torch.ones(8, 384) for part in ('base_encoder', 'momentum_encoder')}
    torch.save(dict(state_dict={**state, 'module.predictor.0.weight': torch.ones(8, 8)}), tmp_path / 'moco.pth')
    assert read_vit(read_checkpoint(tmp_path / 'moco.pth')).dialect == 'MoCo v3'
    images = torch.randn(2, 3, 32, 32)
    expected = model.forward_features(images)
    torch.testing.assert_close(build_backbone(tmp_path / 'moco.pth')(images)[-1], expected, atol=1e-4, rtol=1e-4)
    assert backbone_settings(tmp_path / 'moco.pth')['arch']['num_heads'] == 12
    transfer(tmp_path / 'moco.pth', tmp_path / 'ours.pth', 'odis_mm')
    assert read_meta(tmp_path / 'ours.pth')['num_heads'] == 12
    six = stock_vit(dict(embed_dims=384, num_layers=1, num_heads=6, feedforward_channels=768), patch_size=16)
    with pytest.raises(CheckpointError, match='trained with 12 attention heads'):
        load_backbone(six, tmp_path / 'moco.pth')


@torch.no_grad()
def test_the_small_vit_of_mmpretrain_has_heads_of_its_own(tmp_path):
    model = stock_vit('small', patch_size=16)
    torch.save({f'backbone.{key}': value for key, value in model.state_dict().items()}, tmp_path / 'small.pth')
    images = torch.randn(1, 3, 32, 32)
    built = build_backbone(tmp_path / 'small.pth')
    torch.testing.assert_close(built(images)[-1], model(images)[-1], atol=1e-4, rtol=1e-4)
    assert backbone_settings(tmp_path / 'small.pth')['arch']['num_heads'] == 8
    cfg = load_config('odis_vitb_coco')
    start_from(cfg, tmp_path / 'small.pth', adapt=True)
    assert cfg.model.backbone.arch.num_heads == 8


def test_heads_are_asked_for_where_releases_differ(tmp_path):
    """A ViT-S with fixed positions, under names that do not tell MoCo v3 from others."""

    def pretraining(file):
        return start_from(load_config('odis_vits_coco'), file, adapt=True)

    model = timm_vit(patch_size=16, embed_dim=384, depth=1, num_heads=12)
    columns, rows = torch.meshgrid(torch.arange(2.0), torch.arange(2.0), indexing='xy')
    angles = [side.flatten()[:, None] / 10000 ** (torch.arange(96) / 96) for side in (columns, rows)]
    fixed = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)
    model.pos_embed.data = torch.cat((torch.zeros(1, 384), fixed))[None]
    file = tmp_path / 'stripped.pth'
    for prefix in ('', 'module.base_encoder.'):
        torch.save({f'{prefix}{key}': value for key, value in model.state_dict().items()}, file)
        for use in (build_backbone, backbone_settings, pretraining):
            with pytest.raises(CheckpointError, match='with 12 attention heads and others with 6.*--heads'):
                use(file)
    transfer(file, tmp_path / 'told.pth', 'odis_mm', heads=12)
    images = torch.randn(2, 3, 32, 32)
    for built in (build_backbone(file, heads=12), build_backbone(tmp_path / 'told.pth')):
        torch.testing.assert_close(built(images)[-1], model.forward_features(images), atol=1e-4, rtol=1e-4)
    torch.save({**model.state_dict(), 'decoder_embed.weight': torch.zeros(8, 8)}, file)  # MAE
    assert backbone_settings(file)['arch']['num_heads'] == 6


def test_a_torch_file_of_hugging_face_is_told_by_the_files_beside_it(tmp_path):
    torch.save(huggingface(timm_vit()), tmp_path / 'pytorch_model.bin')
    (tmp_path / 'config.json').write_text(json.dumps(dict(num_attention_heads=4, patch_size=8, layer_norm_eps=1e-12)))
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)))
    expected = dict(num_heads=4, patch_size=8, norm_eps=1e-12, mean=[127.5] * 3, std=[127.5] * 3)
    assert read_meta(tmp_path / 'pytorch_model.bin') == expected


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_a_file_of_timm_is_normalised_as_its_config_says(name, tmp_path):
    from safetensors.torch import save_file

    (save_file if name.endswith('safetensors') else torch.save)(timm_vit().state_dict(), tmp_path / name)
    half, told = dict(mean=[127.5] * 3, std=[255 * 0.25] * 3), dict(mean=[0.5] * 3, std=[0.25] * 3)
    for config in (dict(architecture='vit', pretrained_cfg=told), dict(architecture='vit', **told)):
        (tmp_path / 'config.json').write_text(json.dumps(config))
        assert read_meta(tmp_path / name) == half
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(dict(image_mean=[0.0] * 3, image_std=[1.0] * 3)))
    assert read_meta(tmp_path / name) == dict(mean=[0] * 3, std=[255] * 3)


@pytest.mark.parametrize('name', ['vit_base_patch16_rpn_224', 'vit_base_patch16_rope_ape_224'])
@pytest.mark.parametrize('told', ['config.json', 'arch', 'file'])
def test_models_whose_tensors_do_not_tell_that_they_are_others_are_refused_by_their_name(name, told, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=32, embed_dim=64, depth=2, num_heads=2, num_classes=0).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    file = tmp_path / 'unnamed.pth'
    torch.save(model.state_dict(), file)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():  # why: in silence, other features
        assert (build_backbone(file, heads=2)(images)[-1] - model.forward_features(images)).abs().max() > 0.1
    file = tmp_path / {'config.json': 'pytorch_model.bin', 'arch': 'last.pth', 'file': f'{name}.a1_in1k.pth'}[told]
    torch.save(dict(state_dict=model.state_dict(), arch=name if told == 'arch' else 'x'), file)
    if told == 'config.json':
        (tmp_path / told).write_text(json.dumps(dict(architecture=name)))
    calls = (
        lambda: build_backbone(file, heads=2),
        lambda: transfer(file, tmp_path / 'out.pth', 'odis_mm', heads=2),
        lambda: load_backbone(stock_vit(ARCH), file),
        lambda: backbone_settings(file),
        lambda: commands.transfer_main([str(file)]),
    )
    for call in calls:
        with pytest.raises((CheckpointError, SystemExit)) as stop:
            call()
        assert stop.type is SystemExit or re.search(rf'{name}.* has (norms after|rotary positions)', str(stop.value))
    assert not (tmp_path / 'out.pth').exists()


def test_the_models_of_siglip_that_are_refused_are_those_with_another_activation(tmp_path):
    kinds = set()
    for name in timm.list_models('vit_*siglip*'):
        model = timm.create_model(name, img_size=32, embed_dim=64, depth=1, num_heads=2)
        other = (model.blocks[0].mlp.act(torch.ones(1)) - F.gelu(torch.ones(1))).abs().item() > 1e-5
        kinds.add(other)
        torch.save(dict(arch=name, state_dict={}), tmp_path / 'file.pth')
        if other:
            with pytest.raises(CheckpointError, match=f'{name}.*tanh GELU'):
                read_meta(tmp_path / 'file.pth')
        else:
            assert read_meta(tmp_path / 'file.pth') == {}, name
    assert kinds == {True, False}


@pytest.mark.parametrize('name', ['resnetaa50', 'resnetblur18'])
def test_resnets_with_filters_are_refused_by_their_name(name, tmp_path):
    torch.manual_seed(0)
    model, images = timm.create_model(name, num_classes=0).eval(), torch.randn(1, 3, 64, 64)
    torch.save(model.state_dict(), tmp_path / 'unnamed.pth')
    with torch.no_grad():  # why: in silence, other features
        assert (build_backbone(tmp_path / 'unnamed.pth')(images)[-1] - model.forward_features(images)).abs().max() > 0.1
    file = tmp_path / f'{name}.in1k.pth'
    torch.save(model.state_dict(), file)
    for call in (build_backbone, lambda path: commands.transfer_main([str(path)])):
        with pytest.raises((CheckpointError, SystemExit)) as stop:
            call(file)
        assert stop.type is SystemExit or f'{name}, which has filters before its strides' in str(stop.value)


@pytest.mark.parametrize('told', ['config.json', 'arch', 'file'])
def test_heads_of_a_model_that_has_other_ones_than_its_width_are_told_by_its_name(told, tmp_path):
    name = 'vit_base_patch16_gap_224'
    model = timm.create_model(name, img_size=32, depth=2, num_classes=0).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    file = tmp_path / {'config.json': 'pytorch_model.bin', 'arch': 'last.pth', 'file': f'{name}.pth'}[told]
    torch.save(dict(state_dict=model.state_dict(), arch=name if told == 'arch' else 'x'), file)
    if told == 'config.json':
        (tmp_path / told).write_text(json.dumps(dict(architecture=name)))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found, wanted = build_backbone(file)(images)[-1], model.forward_features(images)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_plain_models_of_timm_are_not_refused_by_their_name(tmp_path):
    for name in (
        'resnet50',
        'vit_small_patch16_dinov3',
        'vit_base_patch16_siglip_gap_224',
        'vit_base_patch16_224',
        'our_rope_run',
    ):
        torch.save(dict(arch=name, state_dict=timm_vit().state_dict()), tmp_path / f'{name}.pth')
        assert read_meta(tmp_path / f'{name}.pth') == {}


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(hidden_act='quick_gelu'), "hidden_act='quick_gelu'"),
        (dict(hidden_act='gelu', use_gated_mlp=True), "have 'silu'"),
        (dict(model_type='dinov3_vit', rope_theta=10.0), 'rope_theta=10'),
        (dict(model_type='dinov3_vit', rope_parameters=dict(rope_theta=10.0)), 'rope_theta=10'),
    ],
)
def test_what_only_a_config_tells_of_a_model_is_not_passed_over(config, message, tmp_path):
    torch.save(huggingface(timm_vit()), tmp_path / 'pytorch_model.bin')
    (tmp_path / 'config.json').write_text(json.dumps(dict(num_attention_heads=2, **config)))
    with pytest.raises(CheckpointError, match=f'config.json.*{message}'):
        build_backbone(tmp_path / 'pytorch_model.bin')


def test_rotary_positions_without_cls_are_refused():
    model = timm.create_model(
        'vit_medium_patch16_rope_reg1_gap_256', img_size=32, embed_dim=64, depth=2, num_heads=2, num_classes=0
    )
    with pytest.raises(CheckpointError, match=r'no \[CLS\] token.*DINOv3'):
        read_vit(model.state_dict())


@torch.no_grad()
@pytest.mark.parametrize('target', ['odis_mm', 'timm', 'huggingface'])
def test_positions_of_a_grid_that_is_no_square_are_read_from_the_grid_of_the_file(target, tmp_path):
    """2 x 8 = 4 x 4: as many positions do not make the same grid."""
    model = timm_vit(img_size=(16, 64))
    torch.save(model.state_dict(), tmp_path / 'wide.pth')
    transfer(tmp_path / 'wide.pth', tmp_path / 'told.pth', 'odis_mm', source_grid=(2, 8), heads=2)
    out = tmp_path / 'out' if target == 'huggingface' else tmp_path / 'out.pth'
    transfer(tmp_path / 'told.pth', out, target)
    file = out / 'model.safetensors' if target == 'huggingface' else out
    assert read_meta(file)['patch_grid'] == [2, 8]
    images = torch.randn(1, 3, 16, 64)
    torch.testing.assert_close(build_backbone(file)(images)[-1], model.forward_features(images), atol=1e-5, rtol=1e-5)
    for side in (32, 48):
        vit = stock_vit(ARCH, img_size=side)
        report = load_backbone(vit, file)
        expected = resize_positions(model.pos_embed, (side // 8, side // 8), 1, source_grid=(2, 8))
        torch.testing.assert_close(vit.pos_embed.data, expected)
        assert 'pos_embed' in report.resized
    assert backbone_settings(file)['img_size'] == (16, 64)
    transfer(file, tmp_path / 'square.pth', 'timm', grid=(3, 3))
    assert read_meta(tmp_path / 'square.pth')['patch_grid'] == [3, 3]


def test_positions_are_resampled_at_loading_as_in_the_forward_pass(tmp_path):
    """DINOv2 with registers, and timm, resample with antialiasing; a backbone that says so does, too."""
    state = timm_vit(img_size=64, reg_tokens=2, no_embed_class=True).state_dict()
    torch.save(state, tmp_path / 'registers.pth')
    vit = build_backbone(tmp_path / 'registers.pth', heads=2)
    kind = dict(type='mmpretrain.ObjectViT', arch=ARCH, img_size=32, patch_size=8, num_registers=2, antialias=True)
    smaller = MODELS.build(kind)
    load_backbone(smaller, vit.state_dict())
    expected = resize_positions(vit.pos_embed, (4, 4), 1, antialias=True)
    torch.testing.assert_close(smaller.pos_embed.data, expected)
    assert (expected - resize_positions(vit.pos_embed, (4, 4), 1)).abs().max() > 0.01


def test_a_detectors_backbone_resamples_as_the_library_of_its_file(tmp_path):
    wide = dict(patch_size=16, embed_dim=384, depth=1, num_heads=6)
    model = timm_vit(img_size=64, reg_tokens=2, no_embed_class=True, **wide)
    torch.save(model.state_dict(), tmp_path / 'registers.pth')
    assert backbone_settings(tmp_path / 'registers.pth')['antialias'] is True


@torch.no_grad()
def test_windows_of_attention_are_kept(tmp_path, capsys):
    """An export tells its windows: what is built, started or transferred from it computes the same; files that tell
    none attend globally."""
    windowed = noisy_vit(window_size=2, global_every=2, num_registers=1).eval()
    images, meta = random_images(), windowed.settings()
    expected, file = windowed(images)[-1], tmp_path / 'windowed.pth'
    save_backbone(file, windowed.state_dict(), meta)
    assert torch.equal(build_backbone(file)(images)[-1], expected)
    transfer(file, tmp_path / 'again.pth', 'odis_mm')
    assert torch.equal(build_backbone(tmp_path / 'again.pth')(images)[-1], expected)
    conversion, proof = transfer(file, tmp_path / 'timm.pth', 'timm')
    assert 'attends globally in all blocks' in str(conversion) and 'cannot be equal' in str(proof)

    settings = dict(backbone_settings(file), out_type='raw', antialias=False)
    started = MODELS.build(settings)
    load_backbone(started, file)
    assert torch.equal(started.eval()(images)[-1], expected)
    del settings['window_size']
    load_backbone(MODELS.build(settings), file, logger=None)
    assert 'window_size=2, global_every=2 on the backbone' in capsys.readouterr().out

    older = {key: value for key, value in meta.items() if key not in ('window_size', 'global_every')}
    save_backbone(tmp_path / 'older.pth', windowed.state_dict(), older)
    whole = build_backbone(tmp_path / 'older.pth')(images)[-1]
    assert torch.equal(whole, noisy_vit(num_registers=1).eval()(images)[-1]) and not torch.equal(whole, expected)


def test_registers_without_cls_are_refused_in_a_sentence(tmp_path):
    model = timm_vit(reg_tokens=2, class_token=False, global_pool='avg', no_embed_class=True)
    torch.save(model.state_dict(), tmp_path / 'gap.pth')
    with pytest.raises(CheckpointError, match=r'num_registers and without \[CLS\]'):
        build_backbone(tmp_path / 'gap.pth', heads=2)


@torch.no_grad()
def test_a_vit_without_cls_keeps_all_its_positions(tmp_path):
    model = timm_vit(class_token=False, global_pool='avg')
    torch.save(model.state_dict(), tmp_path / 'gap.pth')
    images = random_images()
    for target in ('odis_mm', 'mmpretrain', 'detectron2', 'timm'):
        transfer(tmp_path / 'gap.pth', tmp_path / f'{target}.pth', target, heads=2)
        built = build_backbone(tmp_path / f'{target}.pth', heads=2)
        torch.testing.assert_close(built(images)[-1].flatten(1), model.forward_features(images).flatten(1))
        assert backbone_settings(tmp_path / f'{target}.pth')['img_size'] == (32, 32)
    for target in ('huggingface', 'mmseg'):
        with pytest.raises(CheckpointError, match=r'has no \[CLS\] token, which .* needs'):
            transfer(tmp_path / 'gap.pth', tmp_path / f'{target}.pth', target, heads=2)


def test_a_name_to_leave_out_that_no_tensor_has_is_refused():
    state = {f'backbone.{key}': value for key, value in ours(registers=2).items()}
    with pytest.raises(CheckpointError, match="begins with 'register_token_'.*did you mean 'register_tokens'"):
        read_vit(state, drop=['register_token_'])
    with pytest.raises(CheckpointError, match="begins with '', "):
        read_vit(state, drop=[''])
    for name in ('register_tokens', 'backbone.register'):
        assert set(read_vit(state, drop=[name]).dropped) == {'backbone.register_tokens'}
    for name, lacking in (('layers', 'no blocks'), ('patch_embed', 'no patch_embed.projection.weight')):
        with pytest.raises(CheckpointError, match=f'is incomplete: it has {lacking}'):
            read_vit(state, drop=[name])


@pytest.mark.parametrize('target, told', [('huggingface', None), ('huggingface-dinov2', 'MLPs of 80 channels')])
def test_mlps_that_hugging_faces_dinov2_cannot_have_are_refused(tmp_path, target, told):
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=80)
    model = ObjectViT(arch, img_size=32, patch_size=8)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta=model.settings()), tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match=told) if told else nullcontext():
        transfer(tmp_path / 'odd.pth', tmp_path / 'out', target)
    assert (tmp_path / 'out').is_dir() == (told is None)
