"""Gates on what a served model, its training and its files give away about single rows."""
