"""Batches from mixture shards: rows in a resumable order, decoded images, augmentation."""
