"""The CARE-LiSeg challenge: names of input studies, of masks and of the submission.

Works on file and folder names only, without voxels or networks, and imports no imaging library.
"""
