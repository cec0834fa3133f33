"""Mutation testing of a suite of gates, and its false alarm rate on this host."""
