"""Checks the pinned packages for known vulnerabilities with pip-audit: exit code 1 if there are any.

Without a network, it says that nothing was checked, and succeeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv" / "audit"
"""A separate environment, because torchppo does not need pip-audit."""
LOCKS = ("requirements.lock", "requirements-docs.lock")
PIP_AUDIT = "pip-audit==2.10.1"


def main() -> int:
    python = VENV / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", str(VENV))
    options = ("--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20")
    if run(str(python), "-m", "pip", "install", *options, PIP_AUDIT).returncode:
        return skip(f"{PIP_AUDIT} cannot be installed")
    locks = [word for lock in LOCKS for word in ("-r", str(ROOT / lock))]
    done = run(str(python), "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json", *locks)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return skip(done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else "pip-audit failed")
    checked = [package for package in packages if "vulns" in package]
    if not checked:
        return skip("the database does not know any of the packages")
    found = [(package, vulnerability) for package in checked for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        fixes = ", ".join(vulnerability["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixes}")
    print(f"audit: {len(found)} known vulnerabilities in {len(checked)} of {len(packages)} packages that were checked")
    return 1 if found else 0


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def skip(reason: str) -> int:
    print(f"audit: skipped, nothing was checked ({reason})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
