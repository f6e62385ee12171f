"""Every file of rules against the schema; one line a file, then the totals."""

import glob
import json
import os
import re
import subprocess
import sys

import jsonschema
import ruamel.yaml

# Bad for a reason that no schema can see: names that are nobody's, dates, files, duplicates, addresses, what YAML itself
# refuses or reads otherwise. A file that leaves this list by becoming visible is a gain, and has to be taken off it.
INVISIBLE = set(open(os.path.join(os.path.dirname(__file__), "invisible.txt")).read().split())

binary = os.environ["WSBOUNCER"]
schema = json.loads(subprocess.check_output([binary, "schema"]))
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
passed = failed = 0


def report(fine, what):
    global passed, failed
    passed, failed = passed + fine, failed + (not fine)
    print(("ok - " if fine else "not ok - ") + what)


def faults(path):
    """What the schema says of a file; None where YAML itself does not take it."""
    yaml = ruamel.yaml.YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    # Dates stay texts, as an editor has them.
    yaml.constructor.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)
    try:
        with open(path, encoding="utf-8-sig") as file:
            document = yaml.load(file)
    except Exception:
        return None
    return [f"{error.json_path}: {error.message[:100]}" for error in validator.iter_errors(document)]


def fields(schema):
    """Every property, with its own schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {}).items()
        for below in schema.values():
            yield from fields(below)
    elif isinstance(schema, list):
        for below in schema:
            yield from fields(below)


good = glob.glob("config/**/*.yaml", recursive=True) + glob.glob("tests/data/good/*.yaml")
good = sorted(path for path in good if re.search(r"^listen:", open(path, encoding="utf-8-sig").read(), re.M))
for path in good:
    found = faults(path)
    report(found == [], f"{path} is good{'' if not found else ': ' + '; '.join(found)}")

bad = sorted(glob.glob("tests/data/bad/*.yaml"))
for path in bad:
    found, name = faults(path), os.path.basename(path)
    if found is None:
        report(True, f"{path} is not even YAML")
    elif name in INVISIBLE:
        report(not found, f"{path} is bad in a way that no schema sees{'' if not found else ', or is it? ' + found[0]}")
    else:
        report(bool(found), f"{path} is marked")

explained = list(fields(schema))
report(all(field.get("description") for _, field in explained), f"each of {len(explained)} fields is explained")
report(len(good) >= 10 and len(bad) >= 50, f"{len(good)} good files and {len(bad)} bad ones were seen")
print(f"{passed} passed, {failed} failed")
sys.exit(failed > 0)
