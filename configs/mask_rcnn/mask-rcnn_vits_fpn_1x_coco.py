# ViT-S/16: the recipe of the GTSA paper (arXiv 2304.08014).
_base_ = ['_base_/mask-rcnn_vit_fpn.py', '_base_/coco_instance.py', '_base_/schedule_1x.py', '_base_/runtime.py']
