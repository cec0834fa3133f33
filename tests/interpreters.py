"""Programs that stand in for the Python of another environment."""

import sys


def python_after(path, prelude):
    """A Python that runs `prelude` first, such as one that changes onnxruntime."""
    path.write_text(
        f"#!{sys.executable}\n{prelude}\n"
        "import sys\n"
        "code = sys.argv[3]; sys.argv = ['-c', *sys.argv[4:]]; sys.path.insert(0, '')\n"
        "exec(code)\n"
    )
    path.chmod(0o755)
    return path


def program(path, text):
    """A program; `PYTHON` in its text is this Python."""
    path.write_text(text.replace("PYTHON", sys.executable))
    path.chmod(0o755)
    return path
