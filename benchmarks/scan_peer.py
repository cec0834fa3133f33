"""The process that scans files by ModelAudit, in an environment of its own: paths in, one line of JSON a file out."""

import json
import os
import sys

os.environ["PROMPTFOO_DISABLE_TELEMETRY"] = "1"


def main() -> None:
    from modelaudit.core import scan_model_directory_or_file

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            found = scan_model_directory_or_file(json.loads(line), timeout=30)
            issues = [(str(getattr(each.severity, "value", each.severity)), each.message) for each in found.issues]
        except Exception as error:
            issues = [("critical", f"{type(error).__name__}: {error}")]
        print(json.dumps(issues), file=answers, flush=True)


if __name__ == "__main__":
    main()
