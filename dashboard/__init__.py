"""The live page about the network."""
