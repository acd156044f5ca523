# Linear probe of an exported ViT-S: mmpretrain's classifier on a frozen backbone. Any folder with one folder a class:
#   python tools/train.py linear_probe/vits_in1k --cfg-options model.backbone.init_cfg.checkpoint=FILE
# Other classes: train_dataloader.dataset.data_root=DIR val_dataloader.dataset.data_root=DIR model.head.num_classes=10.
# DINO's schedule (SGD, lr 0.001 per 256 images, 100 epochs) on the token of the last block alone: this project's
# choice; DINO joins those of four blocks.
_base_ = '../_base_/default_runtime.py'

# ======================================== frequently changed ========================================
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
    ),
    backbone=dict(
        type='VisionTransformer',
        arch='deit-small',
        img_size=224,
        patch_size=16,
        out_type='cls_token',
        frozen_stages=12,  # all of them
        init_cfg=dict(type='VerifiedPretrained', checkpoint=None),
    ),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=384, loss=dict(type='CrossEntropyLoss'), topk=(1, 5)),
)

# IMAGENET_ROOT in the environment names another folder; it holds train/ and val/, with one folder a class in each
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    # ====================================== seldom changed ==========================================
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='{{$IMAGENET_ROOT:data/imagenet/}}',
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='{{$IMAGENET_ROOT:data/imagenet/}}',
        data_prefix='val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs'),
        ],
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

# per 256 images (DINO)
optim_wrapper = dict(type='SafeOptimWrapper', optimizer=dict(type='SGD', lr=0.001, momentum=0.9, weight_decay=0.0))
auto_scale_lr = dict(enable=True, base_batch_size=256)
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(schedule=None, export=None, health=None, bad_images=None, views=None)  # those are for pretraining
