"""The suite's own plugins: pytester, for tests of the plugin in tiny projects of their own."""

pytest_plugins = ["pytester"]
