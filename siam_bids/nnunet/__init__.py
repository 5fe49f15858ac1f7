"""nnU-Net v2 model folders and their networks: the only importer of nnunetv2."""
