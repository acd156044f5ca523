"""Small data: the head without prototypes, the object's mean patch as a token, lengths in iterations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS

from helpers import ARCH, losses_of, make_batch, make_odis, make_sample
from odis_mm.models.heads import EmbeddingHead
from odis_mm.models.selfsup import odis as module


def embedding_odis(head=None, **kwargs):
    cfg = dict(
        type='ODIS',
        backbone=dict(type='ObjectViT', arch=ARCH, img_size=32, patch_size=8, drop_path_rate=0.0),
        neck=dict(type='ProjectionNeck', in_channels=32, hidden_channels=40, bottleneck_channels=16, num_prototypes=0),
        head=dict(type='EmbeddingHead', **(head or {})),
        **kwargs,
    )
    torch.manual_seed(1)
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_token_loss_by_loops():
    student, targets, visible = unit(4, 5, 2, 8), unit(2, 5, 2, 8, seed=1), torch.rand(5, 4) < 0.6
    visible[0] = True
    head, total, pairs = EmbeddingHead(lambda_entropy=0.3, eps2=0.1), 0.0, 0
    for q in range(2):
        for v in range(4):
            for b in range(5):
                if v != q and visible[b, q] and visible[b, v]:
                    total += (1 - (targets[q, b] * student[v, b]).sum(-1)).mean()
                    pairs += 1
    rates = []
    for v in range(2):
        for t in range(2):
            z = (student[v, :, t] * visible[:, v, None]).double()
            rates.append(torch.logdet(torch.eye(8, dtype=torch.double) + 8 / 0.1 * z.T @ z / 5) / 2 / 5)
    expected = total / pairs - 0.3 * torch.stack(rates).mean()
    torch.testing.assert_close(
        head.token_loss(student, targets, visible).double(), expected.double(), atol=1e-5, rtol=0
    )
    figures = head.monitor(targets)
    assert set(figures) == {'similarity', 'effective_rank'}


@pytest.mark.parametrize('ranks', [1, 4])
def test_equal_views_agree_by_one_however_many_this_rank_sees(monkeypatch, ranks):
    """The loss is divided by the mean count of all ranks; the figure is this rank's own."""
    monkeypatch.setattr(
        'odis_mm.models.heads.embedding.get_world_size', lambda: ranks
    )  # of which the others see nothing
    same, visible = unit(1, 5, 2, 8).expand(2, 5, 2, 8), torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0], [0, 1]]) > 0
    head = EmbeddingHead()
    head.token_loss(same, same, visible)
    assert float(head.monitor(same)['similarity']) == pytest.approx(1)


def test_patch_loss_by_hand():
    student, targets, weight = unit(9, 8), unit(9, 8, seed=1), torch.rand(9)
    expected = ((1 - (student * targets).sum(-1)) * weight).sum()
    torch.testing.assert_close(EmbeddingHead().patch_loss(student, targets, weight), expected)
    z = student.double()
    rate = torch.logdet(torch.eye(8, dtype=torch.double) + 8 / 0.05 * z.T @ z / 9) / 2 / 8
    loss = EmbeddingHead(lambda_patch_entropy=0.5).patch_loss(student, targets, weight)
    torch.testing.assert_close(loss, expected - 0.5 * rate.float())


def test_no_patch_masked_and_no_object_seen_is_finite():
    head = EmbeddingHead(lambda_patch_entropy=1.0)
    assert head.patch_loss(unit(0, 8), unit(0, 8), torch.zeros(0)).isfinite()
    assert head.token_loss(unit(3, 4, 1, 8), unit(2, 4, 1, 8), torch.zeros(4, 3, dtype=torch.bool)).isfinite()


def test_embeddings_that_are_nan_give_a_loss_that_says_so():
    student = unit(3, 4, 1, 8)
    student[0, 1] = torch.nan
    head = EmbeddingHead()
    assert head.token_loss(student, unit(2, 4, 1, 8)).isnan()  # which the run skips; an error would end it
    assert head.monitor(student)['effective_rank'].isnan()


def test_losses_are_of_float32_under_autocast():
    student, targets, weight = unit(3, 6, 1, 64), unit(2, 6, 1, 64, seed=1), torch.full((6,), 1 / 6)
    head = EmbeddingHead(lambda_entropy=0.0)
    tokens, patches = head.token_loss(student, targets), head.patch_loss(student[0, :, 0], targets[0, :, 0], weight)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(head.token_loss(student, targets), tokens)
        assert torch.equal(head.patch_loss(student[0, :, 0], targets[0, :, 0], weight), patches)


@pytest.mark.parametrize('others', [0, 3])
def test_trains_and_trains_all_of_the_backbone(others):
    data = make_batch()
    if others:
        data['data_samples']['other_masks'] = torch.rand(6, others, 16) < 0.3
    model = embedding_odis(lambda_pool=0.5, lambda_patch=0.0)
    losses = losses_of(model, data)
    assert {
        'loss_obj',
        'similarity',
        'effective_rank',
        'loss_pool',
        'pool_similarity',
        'pool_effective_rank',
        'visible_share',
    } == set(losses)
    losses['loss_pool'].backward()  # alone it reaches all that a detector takes
    assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)
    assert losses_of(embedding_odis(), make_batch())['loss_patch'].isfinite()
    model.after_optimizer_step()


def test_pooling_goes_with_prototypes_too():
    assert {'loss_obj', 'loss_patch', 'loss_pool', 'teacher_entropy'} <= set(
        losses_of(make_odis(lambda_pool=1.0), make_batch())
    )


def test_objects_are_the_means_of_their_patches_in_both_views():
    model = make_odis(lambda_pool=1.0)
    images, mask, objects = torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.5, torch.rand(2, 3, 16) < 0.5
    objects[0, 2] = False
    tokens = model.backbone(images, mask)[-1]
    leading, patches, means = module.read_tokens(model.backbone, images, mask, None, torch.tensor([3, 20]), objects)
    for b, n in ((0, 0), (0, 1), (1, 0), (1, 2)):
        torch.testing.assert_close(means[b, n], tokens[b, 1:][objects[b, n]].mean(0))
    assert not means[0, 2].any()  # not in the view
    torch.testing.assert_close(leading, tokens[:, :1])
    torch.testing.assert_close(patches, torch.stack((tokens[0, 4], tokens[1, 5])))


def test_an_object_seen_in_one_view_alone_is_not_compared():
    data = make_batch()
    data['data_samples']['other_masks'] = torch.rand(6, 2, 16) < 0.4
    data['data_samples']['other_masks'][:3, 1] = False  # object 1 of the three images is not in view 1
    data['data_samples']['object_mask'][0][:] = True
    losses = losses_of(embedding_odis(lambda_pool=1.0, head=dict(lambda_entropy=0.0)), data)
    data['data_samples']['other_masks'][3:, 1] = False
    again = losses_of(embedding_odis(lambda_pool=1.0, head=dict(lambda_entropy=0.0)), data)
    torch.testing.assert_close(losses['loss_pool'], again['loss_pool'])


@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN1d')])
@pytest.mark.parametrize('balance', ['center', 'sinkhorn'])
def test_objects_that_are_not_there_are_no_tokens(balance, norm_cfg):
    data = make_batch()
    data['data_samples']['object_mask'][0][:] = True
    models = [make_odis(lambda_pool=1.0, head=dict(balance=balance), neck=dict(norm_cfg=norm_cfg)) for _ in range(2)]
    alone = losses_of(models[0], data)
    data['data_samples']['other_masks'] = torch.zeros(6, 3, 16, dtype=torch.bool)
    beside = losses_of(models[1], data)
    for name in ('loss_pool', 'pool_teacher_entropy'):
        torch.testing.assert_close(beside[name], alone[name])
    pending = [model.head.token_center.pending for model in models]
    torch.testing.assert_close(pending[1], pending[0])


def test_masks_of_further_objects():
    from odis_mm.datasets.transforms import PackViews, SampleViews
    from odis_mm.structures import box_patch_mask

    sample = make_sample(num_objects=4, masks=False)
    sample['rng'] = np.random.default_rng(0)
    views = [
        dict(role='global', num=2, size=48, scale=(0.2, 0.8)),
        dict(role='local', num=1, size=16, scale=(0.1, 0.2)),
    ]
    out = SampleViews(views, patch_size=8, others=5).transform(sample)
    masks = out['other_masks']
    assert masks.shape == (2, 5, 6, 6) and not masks[:, 3:].any()  # the target apart there are three
    rest = [i for i in range(4) if i != out['target']]
    for view, mask in zip(out['views'], masks):
        expected = {box_patch_mask(np.asarray(out['bboxes'][i], float), view, 8).tobytes() for i in rest}
        assert {part.tobytes() for part in mask[:3]} == expected
    out['pixels'] = [np.zeros((*view.size, 3), np.uint8) for view in out['views']]
    assert PackViews().transform(out)['data_samples']['other_masks'].shape == (2, 5, 36)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match='packed'):
        make_odis(lambda_pool=1.0, packed=True)
    with pytest.raises(ValueError, match='patch_center'):
        make_odis(lambda_pool=1.0, head=dict(patch_center='all'))
    with pytest.raises(ValueError, match='eps2'):
        EmbeddingHead(eps2=0.0)


@pytest.mark.parametrize('count', [0, 1, 2])
def test_few_masked_patches_go_through_batch_norm(count):
    data = make_batch()
    mask = torch.zeros_like(data['data_samples']['mim_mask'])
    mask.view(-1)[5 : 5 + count] = True
    data['data_samples']['mim_mask'] = mask
    neck = dict(
        type='ProjectionNeck',
        in_channels=32,
        hidden_channels=40,
        bottleneck_channels=16,
        num_prototypes=0,
        norm_cfg=dict(type='BN1d'),
    )
    model = MODELS.build(
        dict(
            type='ODIS',
            backbone=dict(type='ObjectViT', arch=ARCH, img_size=32, patch_size=8, drop_path_rate=0.0),
            neck=neck,
            head=dict(type='EmbeddingHead'),
        )
    )
    model.train()
    assert losses_of(model, data)['loss_patch'].isfinite()
