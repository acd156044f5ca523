# ViT-B/16 with the recipe of ViT-S; drop path 0.1 is this project's choice, not a published one.
# For data with boxes alone: the twin of mask-rcnn_vitb_fpn_1x_coco.py.
_base_ = ['_base_/faster-rcnn_vit_fpn.py', '_base_/coco_detection.py', '_base_/schedule_1x.py', '_base_/runtime.py']

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.1),
    neck=[
        dict(type='ViTFeaturePyramid', in_channels=768, norm_cfg=dict(type='BN')),
        dict(type='FPN', in_channels=[768] * 4, out_channels=256, num_outs=5),
    ],
)
