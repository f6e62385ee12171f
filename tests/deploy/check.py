"""What config/ offers for running wsbouncer is right, by the word of the programs that read it. See tests/deploy/run."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as older_format

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
CHART = CONFIG / "helm/wsbouncer"
WSBOUNCER = os.environ["WSBOUNCER"]
KUBERNETES = "1.35"
PATIENCE = 20
# Kinds that are not Kubernetes' own, for which there is no schema; with the fields that make them work.
FOREIGN = {"ServiceMonitor": ["selector", "endpoints"]}
ALL_ON = ["admin.exposed=true", "autoscaling.enabled=true", "networkPolicy.enabled=true", "serviceMonitor.enabled=true"]

scratch = pathlib.Path(tempfile.mkdtemp(prefix="wsbouncer-deploy-"))
counts = {"passed": 0, "failed": 0}


def check(name):
    """Runs what it decorates, at once, as one check."""

    def run(body):
        try:
            note = body()
            counts["passed"] += 1
            print(f"ok - {name}" + (f": {note}" if note else ""), flush=True)
        except Exception:
            counts["failed"] += 1
            print(f"not ok - {name}\n{traceback.format_exc()}", flush=True)

    return run


def output(*command, fails=False, both=False, **more):
    """What a program prints, with what it says on the side if that is wanted; it has to succeed, or to fail."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **more)
    text = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, f"{command} ended with {done.returncode}:\n{text}"
    return text if fails or both else done.stdout


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(objects, kind):
    return [it for it in objects if it["kind"] == kind]


# ---- what has to be true of any set of manifests


def validate(text, name):
    """Against the schemas of Kubernetes, strictly; what they do not know has to be in FOREIGN."""
    objects = documents(text)
    for number, it in enumerate(objects):
        if it["kind"] in FOREIGN:
            missing = [field for field in FOREIGN[it["kind"]] if not it["spec"].get(field)]
            assert not missing, f"{name}: {it['kind']} without {missing}"
            continue
        file = scratch / f"{number}.yaml"
        file.write_text(yaml.safe_dump(it))
        said = output("kubernetes-validate", "--strict", "-k", KUBERNETES, file, both=True)
        assert "Couldn't find schema" not in said, said
    return objects


def is_restricted(pod):
    """The Pod Security Standard "restricted", and a root file system that nobody writes to."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert pod["automountServiceAccountToken"] is False
    assert not any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
    for volume in pod.get("volumes", []):
        assert set(volume) - {"name"} <= {"configMap", "secret", "emptyDir", "projected"}, volume
    for container in pod["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True, container["name"]
        assert own["capabilities"] == {"drop": ["ALL"]}, container["name"]


def fits_together(objects):
    """Selectors select the pods, ports have the names they are called by, volumes are there."""
    (deployment,) = of_kind(objects, "Deployment")
    template = deployment["spec"]["template"]
    labels, pod = template["metadata"]["labels"], template["spec"]
    container = next(it for it in pod["containers"] if it["name"] == "wsbouncer")
    ports = {port["name"] for port in container["ports"]}

    def selects(selector):
        assert selector and selector.items() <= labels.items(), f"{selector} does not select {labels}"

    selects(deployment["spec"]["selector"]["matchLabels"])
    for service in of_kind(objects, "Service"):
        selects(service["spec"]["selector"])
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, service["metadata"]["name"]
    for budget in of_kind(objects, "PodDisruptionBudget"):
        selects(budget["spec"]["selector"]["matchLabels"])
    for policy in of_kind(objects, "NetworkPolicy"):
        if "matchLabels" in policy["spec"]["podSelector"]:
            selects(policy["spec"]["podSelector"]["matchLabels"])
            named = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
            assert named <= ports, named
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        assert "replicas" not in deployment["spec"], "the autoscaler and the manifest would fight over it"
    for monitor in of_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [it for it in of_kind(objects, "Service") if wanted <= it["metadata"]["labels"].items()]
        assert {end["port"] for end in monitor["spec"]["endpoints"]} <= {it["name"] for it in service["spec"]["ports"]}
    names = {volume["name"] for volume in pod["volumes"]}
    assert all(it["name"] in names and "subPath" not in it for it in container["volumeMounts"])
    assert "checksum" not in str(template["metadata"]), "an edit must not restart the pods"
    return pod, container


def loads(objects):
    """`wsbouncer check` takes the rules, with the Secret beside them; the drain ends before the pod is killed."""
    pod, container = fits_together(objects)
    (rules,) = [it["data"]["wsbouncer.yaml"] for it in of_kind(objects, "ConfigMap")]
    secrets = of_kind(objects, "Secret")
    digest = "52" * 32
    keys = secrets[0]["stringData"] if secrets else {"keys.yaml": f'keys: [{{ id: a, secrets: [{{ sha256: "{digest}" }}] }}]\n'}
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        mounts = {mount["name"]: pathlib.Path(directory + mount["mountPath"]) for mount in container["volumeMounts"]}
        for name, files in (("rules", {"wsbouncer.yaml": rules}), ("keys", keys)):
            mounts[name].mkdir(parents=True)
            for file, text in files.items():
                (mounts[name] / file).write_text(text)
        says = output(WSBOUNCER, "check", directory + container["args"][-1], both=True)
        assert "warning" not in says, says
    drain = int(yaml.safe_load(rules)["drain"]["timeout"].rstrip("s"))
    stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= stop + drain + 5
    exposed = "allow_remote: true" in rules
    assert exposed == any(port["name"] == "admin" for port in container["ports"])
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"][:2] == ["/wsbouncer", "probe"]
    is_restricted(pod)
    return rules


# ---- Kubernetes

for file in sorted((CONFIG / "kubernetes").glob("*.yaml")):
    if file.name == "kustomization.yaml":
        continue

    @check(f"{file.name} is what Kubernetes {KUBERNETES} expects")
    def _():
        objects = validate(file.read_text(), file.name)
        assert objects
        return f"{len(objects)} objects"


for name in ("sidecar.yaml", "gateway.yaml"):

    @check(f"{name} is one whole, restricted, and its rules load")
    def _():
        loads(documents((CONFIG / "kubernetes" / name).read_text()))


@check("the gateway is the only way to its services")
def _():
    objects = documents((CONFIG / "kubernetes/gateway.yaml").read_text())
    (rules,) = [yaml.safe_load(it["data"]["wsbouncer.yaml"]) for it in of_kind(objects, "ConfigMap")]
    (guard,) = [it for it in of_kind(objects, "NetworkPolicy") if it["metadata"]["namespace"] != "wsbouncer"]
    upstreams = {re.match(r"ws://([^.]+)\.([^.]+)\.svc\.cluster\.local:(\d+)$", url).groups() for url in rules["upstreams"].values()}
    (expression,) = guard["spec"]["podSelector"]["matchExpressions"]
    (rule,) = guard["spec"]["ingress"]
    (peer,) = rule["from"]
    assert {name for name, _, _ in upstreams} == set(expression["values"])
    assert {space for _, space, _ in upstreams} == {guard["metadata"]["namespace"]}
    assert {int(port) for _, _, port in upstreams} == {port["port"] for port in rule["ports"]}
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "wsbouncer"}
    (space,) = of_kind(objects, "Namespace")
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@check("kubectl kustomize puts the gateway together")
def _():
    objects = validate(output("kubectl", "kustomize", CONFIG / "kubernetes"), "kustomize")
    rules = loads(objects)
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example.com/wsbouncer:0.1.0"
    (config,) = of_kind(objects, "ConfigMap")
    assert config["metadata"]["name"] == "wsbouncer-rules", "a hash in the name would restart pods on every edit"
    assert of_kind(objects, "ServiceMonitor") and "admin" in rules


# ---- Helm


def template(*values, fails=False):
    sets = [part for value in values for part in ("--set-json" if value.endswith(("]", "}")) else "--set", value)]
    return output("helm", "template", "chat", CHART, *sets, fails=fails)


@check("helm lint has nothing to say about the chart")
def _():
    for values in ([], ALL_ON):
        output("helm", "lint", "--strict", CHART, *[part for value in values for part in ("--set", value)])


for title, values, kinds in (
    ("as it comes", [], {"ConfigMap", "Deployment", "PodDisruptionBudget", "Service"}),
    (
        "with everything on",
        ALL_ON,
        {"ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceMonitor"},
    ),
):

    @check(f"the chart {title} is what Kubernetes {KUBERNETES} expects, and its rules load")
    def _():
        objects = validate(template(*values), title)
        assert {it["kind"] for it in objects} == kinds
        loads(objects)


@check("the chart's grace period follows its drain")
def _():
    objects = documents(template("drain.timeoutSeconds=300", "drain.preStopSeconds=20"))
    loads(objects)
    assert of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 330


@check("rules of one's own reach the file as they are")
def _():
    own = {"upstreams": {"a": "ws://a:1"}, "routes": [{"path": "/a", "upstream": "a", "allowed_origins": ["https://a.example"]}]}
    rules = yaml.safe_load(loads(documents(template("rules=" + json.dumps(own)))))
    assert rules["routes"] == own["routes"], rules


@check("the chart refuses values that would be ignored or overruled")
def _():
    for value, word in (
        ("rules.listen=0.0.0.0:1", "rules"),
        ("rules.drain.timeout=1s", "rules"),
        ("replica=3", "replica"),
        ("keys.existingSecret=", "existingSecret"),
        ("serviceMonitor.enabled=true", "admin.exposed"),
    ):
        assert word in template(value, fails=True), value


# ---- Compose and systemd


@check("compose.yaml is read by Compose, and only the proxy reaches the service")
def _():
    command = ["docker", "compose"]
    if subprocess.run([*command, "version"], capture_output=True).returncode != 0:
        command = ["docker-compose"]
    rendered = yaml.safe_load(output(*command, "-f", CONFIG / "compose.yaml", "config"))
    chat, proxy = rendered["services"]["chat"], rendered["services"]["wsbouncer"]
    assert "ports" not in chat and set(chat["networks"]) == {"inside"} and rendered["networks"]["inside"]["internal"] is True
    assert proxy["read_only"] is True and proxy["cap_drop"] == ["ALL"] and proxy["security_opt"] == ["no-new-privileges:true"]
    grace = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", proxy["stop_grace_period"])
    assert int(grace[1] or 0) * 60 + int(grace[2] or 0) >= 65
    return " ".join(command)


@check("systemd reads the unit, and finds little that it could do")
def _():
    unit = (CONFIG / "systemd/wsbouncer.service").read_text()
    # It looks whether the program is there.
    unit, count = re.subn(r"^ExecStart=\S+", f"ExecStart={WSBOUNCER}", unit, flags=re.M)
    assert count == 1
    file = scratch / "wsbouncer.service"
    file.write_text(unit)
    said = output("systemd-analyze", "verify", file, both=True)
    assert "wsbouncer.service:" not in said, said
    said = output("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", file)
    return re.search(r"exposure level.*?: ([\d.]+)", said)[1] + " of 10 exposed"


@check("the unit starts the program with arguments that it takes")
def _():
    unit = (CONFIG / "systemd/wsbouncer.service").read_text()
    arguments = re.search(r"^ExecStart=\S+ (.*)$", unit, flags=re.M)[1].split()
    file = scratch / "not-there.yaml"
    arguments[arguments.index("--config") + 1] = str(file)
    said = output(WSBOUNCER, *arguments, fails=True)
    assert "not-there.yaml" in said and "Usage" not in said, said


# ---- Prometheus and Grafana


def get(port, path, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return answer.read().decode()


def metrics_after_traffic():
    """What a running proxy tells, in both formats, when it has opened, refused and failed to reach."""
    file = scratch / "wsbouncer.yaml"
    # Nobody listens on port 9, the one for what is thrown away.
    file.write_text(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n"
        "  - { name: gone, path: /gone, upstream: 'ws://127.0.0.1:9', auth: none }\n"
        "  - { name: guarded, path: /guarded, upstream: 'ws://127.0.0.1:9' }\n"
        "keys: [{ id: a, secret: test_api_key_0123456789 }]\n"
    )
    command = [WSBOUNCER, "serve", "--log-format", "json", "--config", str(file)]
    proxy = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = (json.loads(line) for line in proxy.stderr)
        said = next(line for line in lines if line["message"] == "listening")
        listen, admin = (int(said[field].rsplit(":", 1)[1]) for field in ("listen", "admin"))
        handshake = {
            "Connection": "Upgrade", "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        for path in ("/gone", "/guarded", "/nowhere"):
            with socket.create_connection(("127.0.0.1", listen), timeout=PATIENCE) as client:
                lines = "".join(f"{name}: {value}\r\n" for name, value in handshake.items())
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n".encode())
                assert client.recv(1 << 16)
        deadline = time.monotonic() + PATIENCE
        while "\nwsbouncer_connections_open 0\n" not in get(admin, "/metrics"):
            assert time.monotonic() < deadline, "connections stay open"
            time.sleep(0.02)
        modern = get(admin, "/metrics", Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        return modern, get(admin, "/metrics", Accept="text/plain")
    finally:
        proxy.send_signal(signal.SIGTERM)
        proxy.wait(timeout=PATIENCE)


def samples(families):
    return {(it.name, tuple(sorted(it.labels.items()))): it.value for family in families for it in family.samples}


@check("Prometheus' own readers read /metrics, in both formats, and find the same")
def _():
    modern, older = metrics_after_traffic()
    assert modern.endswith("# EOF\n")
    new, old = samples(open_metrics(modern)), samples(older_format(older))
    assert new == old, set(new.items()) ^ set(old.items())
    assert sum(value for (name, _), value in new.items() if name == "wsbouncer_refusals_total") == 3, modern
    output("promtool", "check", "metrics", input=older)
    return f"{len(new)} samples"


@check("promtool reads the alerts, and they are raised when they should be")
def _():
    said = output("promtool", "check", "rules", CONFIG / "prometheus/alerts.yaml", both=True)
    output("promtool", "test", "rules", ROOT / "tests/deploy/alerts.test.yaml")
    alerts = re.findall(r"alert: (\w+)", (CONFIG / "prometheus/alerts.yaml").read_text())
    page = (ROOT / "docs/metrics.md").read_text()
    assert all(f"| `{alert}` |" in page for alert in alerts), "docs/metrics.md explains each alert"
    return re.search(r"\d+ rules", said)[0]


@check("every expression of the dashboard is PromQL, and its panels are whole")
def _():
    dashboard = json.loads((CONFIG / "grafana/wsbouncer.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 12
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels)))
    assert used <= variables | {"__rate_interval"}, used - variables
    plain = [re.sub(r"\$(job|instance|route)", ".*", it.replace("$__rate_interval", "5m")) for it in expressions]
    rules = {"groups": [{"name": "all", "rules": [{"record": f"panel:{n}", "expr": it} for n, it in enumerate(plain)]}]}
    file = scratch / "expressions.yaml"
    file.write_text(yaml.safe_dump(rules))
    output("promtool", "check", "rules", file)
    # No two panels on one another.
    places = [(p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy) for p in panels for dx in range(p["gridPos"]["w"]) for dy in range(p["gridPos"]["h"])]
    assert len(set(places)) == len(places)
    return f"{len(expressions)} expressions"


subprocess.run(["rm", "-rf", str(scratch)], check=True)
print(f"{counts['passed']} passed, {counts['failed']} failed")
sys.exit(1 if counts["failed"] else 0)
