"""The CARE-LiSeg contract: which studies come in, and under which names masks go out.

Knows file and folder names, nothing of voxels or networks, so listing is quick and needs no
imaging library.
"""
