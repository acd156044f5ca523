# The small detector of mask-rcnn_demo.py for a data set of one's own: 128 px short side, hundreds to thousands of
# images, CPUs or one GPU. odis_mm.recipes.detector_config fills in classes, paths, anchors, backbone and length; by
# hand they are --cfg-options.
_base_ = './mask-rcnn_demo.py'

data_root = 'data/own/'
num_classes = 80
scale = (213, 128)  # longest and shortest side in pixels

model = dict(
    roi_head=dict(bbox_head=dict(num_classes=num_classes), mask_head=dict(num_classes=num_classes)),
    test_cfg=dict(rcnn=dict(max_per_img=100)),  # as many as COCO's metric counts
)

load = dict(type='LoadDetectionImage')  # channels=..., window=(low, high): as in pretraining
train_pipeline = [
    load,
    dict(type='LoadBoxesAndMasks'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'flip', 'flip_direction')),
]
test_pipeline = [
    load,
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadBoxesAndMasks'),  # after it: they are drawn on the image as it is, see --show-dir
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_sampler=dict(type='AspectRatioBatchSampler'),  # a ViT sees what pads images of a batch to one size
    dataset=dict(
        type='DetectionDataset',  # up to 1 % of the images may be unreadable: max_bad_share
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,  # else what is found in an image would depend on the others of its batch
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='images/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

tunable = {  # knobs of `odis-mm compare` with tuning
    'optim_wrapper.optimizer.lr': [5e-4, 1e-3, 2e-3],
    'optim_wrapper.paramwise_cfg.backbone_lr_mult': [0.1, 0.3, 1.0],
}
