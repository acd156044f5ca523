# mmdet's Mask R-CNN with a plain ViT tapped at four depths, rescaled to strides 4, 8, 16 and 32, in place of the
# ResNet: the detector of the GTSA paper (arXiv 2304.08014). What is not named here is mmdet's.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),  # a multiple of twice the patch size
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='deit-small',
        img_size=224,  # fixes the grid of pos_embed only; it is resampled to the real size of every batch
        patch_size=16,
        out_type='featmap',
        out_indices=[3, 5, 7, 11],  # paper: after blocks 4, 6, 8 and 12
        drop_path_rate=0.05,  # paper
        # the pretrained backbone: --cfg-options model.backbone.init_cfg.checkpoint=FILE; None: random initialisation
        init_cfg=dict(type='VerifiedPretrained', checkpoint=None),
    ),
    neck=[
        dict(type='ViTFeaturePyramid', in_channels=384, norm_cfg=dict(type='BN')),
        dict(type='FPN', in_channels=[384] * 4, out_channels=256, num_outs=5),
    ],
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),  # ours, as mmdet has it for boxes alone
)
