# ALFM (our reconstruction) on a ViT of 128 channels and 4 blocks with patches of 8 pixels, for the 48 pixel views of
# the demo set.
_base_ = './alfm_vits.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512),
        img_size=48,
        patch_size=8,
        drop_path_rate=0.0,
    ),
    # All numbers are ours. At this size and length centering at temperature 0.04 drifts to flat soft labels (so does
    # ODIS, odis_demo.py). Batch norm, balanced sharp targets and prototypes that cannot shrink keep it from there.
    neck=dict(
        in_channels=128,
        hidden_channels=512,
        bottleneck_channels=128,
        num_prototypes=64,
        norm_trainable=False,
        norm_cfg=dict(type='BN1d'),
    ),
    head=dict(
        num_prototypes=64,
        balance='sinkhorn',
        teacher_temp=0.025,
        num_cells=4,  # the maps have 6 x 6 cells
        lambda_entropy=0.3,  # at 1 the entropy does all the work and the views' similarity stays at 0.1
    ),
    embed_shared=True,  # whole crops of an image full of objects have little in common
    lambda_cdlp=0.03,  # from 0.1 on it takes from what GMSR gives (docs/evidence/demo.md)
    momentum=dict(start=0.95),  # at 0.99 half of a teacher's weights are still the initial ones after 150 steps
)
