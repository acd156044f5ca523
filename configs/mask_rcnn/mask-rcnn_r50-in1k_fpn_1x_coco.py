# The same detector from torchvision's ResNet-50, supervised on all of ImageNet-1k: what the "10 % of the samples" runs
# are compared with. mmengine fetches the weights on first use; any file of them: --cfg-options
# model.backbone.init_cfg.checkpoint=FILE
_base_ = './mask-rcnn_r50_fpn_1x_coco.py'

model = dict(backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='torchvision://resnet50')))
