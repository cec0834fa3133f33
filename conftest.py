"""The suite's own plugins: pytester, for tiny projects of their own, and the fixtures of the example models."""

pytest_plugins = [
    "pytester",
    "fixtures.breast_cancer",
    "fixtures.co2",
    "fixtures.digits",
    "fixtures.inference_servers",
    "fixtures.seed_mlp",
    "fixtures.stdlib_text",
]
