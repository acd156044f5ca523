# ALFM (our reconstruction), ResNet-50, COCO train2017, 100 epochs at a global batch of 512 (8 ranks x 64).
# Its 118,287 images are 9 % of ImageNet-1k's: with mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py this is one side of the
# comparison with supervised ImageNet pretraining; the other is mask_rcnn/mask-rcnn_r50-in1k_fpn_1x_coco.py.
_base_ = [
    './_base_/models/alfm_r50.py',
    './_base_/datasets/coco_two_views.py',
    './_base_/schedules/selfsup_100e.py',
    './_base_/default_runtime.py',
]

train_dataloader = _base_.train_dataloader
steps = {step.type: step for step in train_dataloader.dataset.pipeline}
steps['SampleViews'].patch_size = 32  # the map's stride, of which the view's size must be a multiple
del steps
default_hooks = dict(schedule=dict(weight_decay_end=None))  # constant: the rising decay is a recipe for ViTs
# Batch norm sees the 2 x 64 views of its rank. With few images per rank: sync_bn='torch' (GPUs).
