"""FSL-nnUNet: from labelled volumes to a trained nnU-Net, with nnU-Net's own trainer inside."""
