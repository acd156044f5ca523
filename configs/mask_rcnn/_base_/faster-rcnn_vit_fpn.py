# For data with boxes alone.
_base_ = './mask-rcnn_vit_fpn.py'

model = dict(
    type='FasterRCNN', data_preprocessor=dict(pad_mask=False), roi_head=dict(mask_roi_extractor=None, mask_head=None)
)
