"""Gates without Python: contracts in TOML, and model files on the command line of pytest."""
