"""``train`` and ``pretrain-sam2``: networks from labelled or synthetic volumes."""
