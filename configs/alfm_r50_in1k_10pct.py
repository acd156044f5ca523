# ALFM (our reconstruction), ResNet-50, a tenth of ImageNet-1k without its labels, 100 epochs at a global batch of 512
# (8 ranks x 64): the "10 % of the samples" side of the comparison on the very data of the supervised one
# (mask_rcnn/mask-rcnn_r50-in1k_fpn_1x_coco.py).
_base_ = './alfm_r50_coco.py'

# IMAGENET_ROOT in the environment names another folder
train_dataloader = dict(
    dataset=dict(
        data_root='{{$IMAGENET_ROOT:data/imagenet/}}',
        ann_file='',  # every image below train/
        data_prefix='train/',
        data_fraction=0.1,
    )
)  # by dataset.seed; a smaller fraction is part of a larger one
