# mmdet's own Mask R-CNN R50-FPN 1x, number for number; what differs is how the backbone's weights come in (checked,
# tensor by tensor).
_base_ = ['_base_/mask-rcnn_vit_fpn.py', '_base_/coco_instance.py', '_base_/schedule_1x.py', '_base_/runtime.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        # stem and first stage as pretrained, batch norm with the pretraining's statistics; from random weights neither
        # makes sense: then set frozen_stages=-1 and norm_eval=False
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        style='pytorch',
        # the pretrained backbone: --cfg-options model.backbone.init_cfg.checkpoint=FILE; None: random initialisation
        init_cfg=dict(type='VerifiedPretrained', checkpoint=None),
    ),
    neck=dict(_delete_=True, type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=True))),
)

train_pipeline = [
    dict(type='LoadDetectionImage'),
    dict(type='LoadBoxesAndMasks'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=16)
