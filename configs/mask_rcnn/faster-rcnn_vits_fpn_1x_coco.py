# ViT-S/16: the recipe of the GTSA paper (arXiv 2304.08014).
# For data with boxes alone: the twin of mask-rcnn_vits_fpn_1x_coco.py.
_base_ = ['_base_/faster-rcnn_vit_fpn.py', '_base_/coco_detection.py', '_base_/schedule_1x.py', '_base_/runtime.py']
