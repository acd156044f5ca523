# ADE20K's training images (images/training/ of ADEChallengeData2016), viewed as COCO is in coco_pairs.py.
_base_ = './coco_pairs.py'

# ADE20K_ROOT in the environment names another folder
train_dataloader = dict(dataset=dict(data_root='{{$ADE20K_ROOT:data/ade20k/}}', data_prefix='images/training/'))
