# For data with boxes alone: the twin of mask-rcnn_small.py.
_base_ = './mask-rcnn_small.py'

model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))

load_boxes = dict(type='LoadAnnotations', with_bbox=True)
train_pipeline = _base_.train_pipeline
train_pipeline[1] = load_boxes
test_pipeline = _base_.test_pipeline
test_pipeline[1] = load_boxes

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
