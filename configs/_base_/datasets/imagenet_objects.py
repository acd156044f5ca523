# ImageNet-1k train (train/n01440764/*.JPEG) with a json of boxes: {"n01440764/n01440764_18.JPEG": [[x1, y1, x2, y2],
# ...], ...} in pixels, from
# ImageNet's own box annotations or from any class-agnostic detector. Images that it does not name count as one object
# as a whole.
_base_ = './coco_objects.py'

# IMAGENET_ROOT in the environment names another folder
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        data_root='{{$IMAGENET_ROOT:data/imagenet/}}',
        ann_file='annotations/boxes_train.json',  # '': no boxes at all
        data_prefix='train/',
    ),
)
