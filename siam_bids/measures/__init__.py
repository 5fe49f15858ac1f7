"""What is measured on segmentations, and tables over all scans."""
