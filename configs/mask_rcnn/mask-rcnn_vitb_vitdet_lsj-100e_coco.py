# ViT-B/16 as in ViTDet (arXiv 2203.16527): simple pyramid on the last map, LN in the heads, layer-wise lr decay,
# large-scale jitter. Attention is global in every block: ViTDet's windows save memory, and the stock ViT has a fused
# attention kernel instead.
_base_ = ['_base_/mask-rcnn_vit_fpn.py', '_base_/coco_instance.py', '_base_/schedule_1x.py', '_base_/runtime.py']

norm_cfg = dict(type='mmpretrain.LN2d', eps=1e-6)
image_size = (1024, 1024)

model = dict(
    backbone=dict(arch='base', out_indices=[11], drop_path_rate=0.1),
    neck=dict(
        _delete_=True, type='ViTSimplePyramid', in_channels=768, out_channels=256, scales=(4, 2, 1, 0.5), extra_levels=1
    ),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)

train_pipeline = [
    dict(type='LoadDetectionImage'),
    dict(type='LoadBoxesAndMasks'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_type='absolute', crop_size=image_size, recompute_bbox=True, allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type='Pad', size=image_size, pad_val=dict(img=(114, 114, 114))),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadDetectionImage'),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='Pad', size=image_size, pad_val=dict(img=(114, 114, 114))),
    dict(type='LoadBoxesAndMasks'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# lr, decay and warm-up as published for ViT-B, 64 images per step
train_cfg = dict(max_epochs=100, val_interval=5)
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay_rate=0.7),  # ViT-L: 0.8
    optimizer=dict(lr=1e-4, weight_decay=0.1),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=100, milestones=[89, 96], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=64)
