"""Checks a wheel of hsm-toolkit from inside an environment that has its base install and nothing else.

Run with `python -I`, so that the checkout does not lend its packages.
"""

import importlib.metadata
import sys
import zipfile
from pathlib import Path

PACKAGES = ("hsm", "persistence")
KINDS = {".lua", ".proto", ".py", ".pyi", ".sql", ".typed"}
ROOT = Path(__file__).resolve().parent.parent


def missing_files(wheel: Path) -> list[str]:
    """Names files of the packages that the wheel left behind."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    sources = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return sorted(
        name
        for path in sources
        if (path.suffix in KINDS or path.name == "py.typed")
        and (name := path.relative_to(ROOT).as_posix()) not in shipped
    )


def imported_third_parties() -> list[str]:
    """Names modules outside the base install that importing both packages brought in."""
    before = set(sys.modules)
    import hsm  # noqa: PLC0415 - what the import brings in is the question
    import persistence  # noqa: PLC0415

    for package in (hsm, persistence):
        if ROOT in Path(str(package.__file__)).parents and "site-packages" not in str(package.__file__):
            sys.exit(f"{package.__name__} was imported from the checkout, not from the wheel")
    allowed = {*PACKAGES, "attr", "attrs", "google", "typing_extensions"}
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
    heavy = {"sqlite3", "_sqlite3"} & loaded
    foreign = loaded - allowed - sys.stdlib_module_names
    return sorted(heavy | {name for name in foreign if not name.startswith("_")})


def base_requirements() -> set[str]:
    """Distributions installed beside ours."""
    return {distribution.name.lower() for distribution in importlib.metadata.distributions()} - {
        "hsm-toolkit"
    }


def main() -> None:
    """Ends with a message for the first thing that is wrong."""
    wheel = Path(sys.argv[1])
    if missing := missing_files(wheel):
        sys.exit(f"{wheel.name} lacks: {', '.join(missing)}")
    if extra := base_requirements() - {"attrs", "protobuf", "typing-extensions", "typing_extensions"}:
        sys.exit(f"the base install brought in: {', '.join(sorted(extra))}")
    if loaded := imported_third_parties():
        sys.exit(f"importing hsm and persistence loads: {', '.join(loaded)}")
    print(f"{wheel.name}: complete; the base install imports on its own")


if __name__ == "__main__":
    main()
