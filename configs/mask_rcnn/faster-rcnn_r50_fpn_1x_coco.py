# For data with boxes alone: the twin of mask-rcnn_r50_fpn_1x_coco.py.
_base_ = './mask-rcnn_r50_fpn_1x_coco.py'

model = dict(
    type='FasterRCNN',
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),
)  # as mmdet's

load_boxes = dict(type='LoadAnnotations', with_bbox=True)
train_pipeline = [load_boxes if step.type == 'LoadBoxesAndMasks' else step for step in _base_.train_pipeline]
test_pipeline = [load_boxes if step.type == 'LoadBoxesAndMasks' else step for step in _base_.test_pipeline]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
