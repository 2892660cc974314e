"""Write the reports of workdirs anew from their rows: python -m experiments.report WORKDIR ..."""

import sys

from experiments import console, report

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m experiments.report WORKDIR ...")
    try:
        for workdir in sys.argv[1:]:
            console.say(f"Report: {report.write(workdir).page}")
    except (ValueError, OSError) as error:
        console.say(f"error: {error}", file=sys.stderr)
        sys.exit(2)
