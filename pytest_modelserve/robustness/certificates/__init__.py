"""Certificates of robustness, which no attack can break."""
