# The small detector of the embedded demo set: 128 px images, objects of 16 to 72 px, made to be cheap on a CPU. The
# very same config serves the comparison of pretrained and random weights: only init_cfg.checkpoint of the backbone
# changes.
_base_ = ['_base_/mask-rcnn_vit_fpn.py', '_base_/schedule_1x.py', '_base_/runtime.py']

data_root = '{{$ODIS_DEMO_ROOT:data/odis_demo}}'  # rendered on first use
num_classes = 6
channels = 64
strides = [4, 8, 16]
norm_cfg = dict(type='GN', num_groups=8)  # 8 images per step are few for batch statistics

model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512),
        img_size=128,  # of the images: pretrained positions are resized once, as they arrive
        patch_size=8,
        out_indices=[3],
        drop_path_rate=0.0,
    ),
    # four blocks are too few to tap: every level is made from the last map, where pretraining put what it learned
    neck=dict(
        _delete_=True,
        type='ViTSimplePyramid',
        in_channels=128,
        out_channels=channels,
        scales=(2, 1, 0.5),
        extra_levels=0,
    ),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4, 5.6], ratios=[0.67, 1.5], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            # torchvision's: the same numbers as mmcv's bit for bit, and faster on CPUs
            roi_layer=dict(output_size=7, sampling_ratio=1, use_torchvision=True),
            out_channels=channels,
            featmap_strides=strides,
            finest_scale=24,
        ),
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=num_classes, reg_class_agnostic=True),
        mask_roi_extractor=dict(
            roi_layer=dict(output_size=10, sampling_ratio=1, use_torchvision=True),
            out_channels=channels,
            featmap_strides=strides,
            finest_scale=24,
        ),
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=num_classes,
            roi_feat_size=10,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=48), mask_size=20),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(score_thr=0.02, max_per_img=30)),
)

train_pipeline = [
    dict(type='LoadDetectionImage'),
    dict(type='LoadBoxesAndMasks'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'flip', 'flip_direction')),
]
test_pipeline = [
    dict(type='LoadDetectionImage'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),  # notes the scale factor that the heads ask for
    dict(type='LoadBoxesAndMasks'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='DemoDetectionDataset',
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='DemoDetectionDataset',
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + '/annotations/instances_val2017.json', metric=['bbox', 'segm']
)
test_evaluator = val_evaluator

max_iters = 600
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
# the new layers learn fast, the backbone, pretrained or not, at a tenth of that
optim_wrapper = dict(
    paramwise_cfg=dict(backbone_lr_mult=0.1),
    optimizer=dict(lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-5),
]
auto_scale_lr = dict(base_batch_size=8)
log_processor = dict(by_epoch=False)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(by_epoch=False, interval=max_iters, max_keep_ckpts=1))
