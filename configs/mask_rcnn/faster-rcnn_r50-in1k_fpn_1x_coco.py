# For data with boxes alone: the twin of mask-rcnn_r50-in1k_fpn_1x_coco.py.
_base_ = './faster-rcnn_r50_fpn_1x_coco.py'

model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='torchvision://resnet50')))
