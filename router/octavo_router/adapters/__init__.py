"""Adapters over the replicas of a deployment: who has which, how they get there, how many."""
