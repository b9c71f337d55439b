"""Retrieval evaluation: embedding of tracklets, protocols, CMC, mAP and mINP."""
