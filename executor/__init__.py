"""Instruction to checkout, environment, data, launch, supervision, collection, publication."""
