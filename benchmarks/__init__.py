"""Programs that print the figures of the project: a regular package, because opacus installs one of the same name."""
