"""The SBOM: CycloneDX says that it is one, and it lists what cargo links, no more and no less."""

import json
import subprocess
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

path, features = sys.argv[1:]
text = open(path, encoding="utf-8").read()
fault = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
assert fault is None, fault

sbom = json.loads(text)
listed = {f"{component['name']} {component['version']}" for component in sbom["components"]}
assert len(listed) == len(sbom["components"]) >= 60, "each crate once"
for component in sbom["components"]:
    assert component["licenses"] and len(component["hashes"][0]["content"]) == 64, component

# Another way to the same list: the graph that cargo has resolved for this machine.
host = subprocess.check_output(["rustc", "--print", "host-tuple"], text=True).strip()
command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", host, "--features", features]
metadata = json.loads(subprocess.check_output(command))
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
is_macro = {id: any("proc-macro" in target["kind"] for target in package["targets"]) for id, package in packages.items()}
linked, waiting = set(), [metadata["resolve"]["root"]]
while waiting:
    for needed in nodes[waiting.pop()]["deps"]:
        is_normal = any(kind["kind"] is None for kind in needed["dep_kinds"])
        if is_normal and not is_macro[needed["pkg"]] and needed["pkg"] not in linked:
            linked.add(needed["pkg"])
            waiting.append(needed["pkg"])
expected = {f"{packages[id]['name']} {packages[id]['version']}" for id in linked}
# What is only there for a feature that nobody asked for is known to cargo metadata, and is not linked.
missing = listed - expected
assert not missing, f"not linked: {missing}"
assert len(expected - listed) <= 3, f"linked and not listed: {expected - listed}"

known = {component["bom-ref"] for component in sbom["components"]} | {sbom["metadata"]["component"]["bom-ref"]}
for entry in sbom["dependencies"]:
    assert entry["ref"] in known and set(entry["dependsOn"]) <= known, entry
assert {entry["ref"] for entry in sbom["dependencies"]} == known
print(f"ok - SBOM with {features or 'no features'}: {len(listed)} crates, valid CycloneDX 1.5, as cargo resolves them")
