"""Runs every example of docs/migrating.md, and compares what it does with the table there."""

import base64
import contextlib
import hashlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/migrating.md").read_text()
KEY, OTHER, WRONG = "Laptop-Example-Key-0123456789", "Dashboard-Example-Key-0123456789", "wrong-key-0123456789"
DEADLINE = 15  # seconds, for anything that has to become true
BOUNCERS = {"wsbouncer-keys": "keys", "wsbouncer-user": "another header", "wsbouncer-key-file": "key file"}
results = []


def example(name):
    """The fenced block after the marker of that name."""
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```\w+\n(.*?)```\n", PAGE, re.S)
    if not found:
        raise SystemExit(f"docs/migrating.md has no example {name}")
    return found.group(1)


def report(name, good, why=""):
    results.append(good)
    print(("ok - " if good else "not ok - ") + name + ("" if good else f"\n    {why}"), flush=True)


@contextlib.contextmanager
def case(name):
    """What breaks in one case is that case's failure, and the others go on."""
    try:
        yield
    except (TimeoutError, OSError, AttributeError, TypeError, subprocess.SubprocessError) as fault:
        report(name, False, repr(fault))


def until(condition, what):
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise TimeoutError(f"not within {DEADLINE} s: {what}")


# --- frames, RFC 6455 section 5: only short ones are needed


def frame(opcode, payload, masked):
    mask = os.urandom(4) if masked else b""
    length = bytes([len(payload) | (128 if masked else 0)]) if len(payload) < 126 else (
        bytes([126 | (128 if masked else 0)]) + struct.pack(">H", len(payload)))
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if masked else payload
    return bytes([0x80 | opcode]) + length + mask + body


def read_frame(stream):
    """(opcode, payload), or None at the end of the stream."""
    head = stream.read(2)
    if len(head) < 2:
        return None
    length = head[1] & 127
    if length == 126:
        length = struct.unpack(">H", stream.read(2))[0]
    mask = stream.read(4) if head[1] & 128 else bytes(4)
    body = stream.read(length)
    return head[0] & 15, bytes(byte ^ mask[at % 4] for at, byte in enumerate(body))


def read_head(stream):
    lines = []
    while (line := stream.readline()) not in (b"\r\n", b""):
        lines.append(line.decode("latin-1").rstrip("\r\n"))
    fields = [line.split(":", 1) for line in lines[1:]]
    return (lines[0] if lines else ""), [(name.strip().lower(), value.strip()) for name, value in fields]


# --- what is protected, and who knows the keys where a service does


class Server:
    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.guarded, args=[connection], daemon=True).start()

    def guarded(self, connection):
        with connection, contextlib.suppress(OSError):
            self.serve(connection, connection.makefile("rb"))


class Service(Server):
    """Takes every upgrade, says in its first message which headers came, then echoes."""

    def serve(self, connection, stream):
        _, headers = read_head(stream)
        key = dict(headers).get("sec-websocket-key")
        if not key:
            return
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                           b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n")
        shown = "\n".join(f"{name}: {value}" for name, value in headers)
        connection.sendall(frame(1, shown.encode(), False))
        while (got := read_frame(stream)) and got[0] != 8:
            connection.sendall(frame(got[0], got[1], False))
        if got:
            connection.sendall(frame(8, got[1], False))


class Authorizer(Server):
    """204 (or 200, which Envoy wants) and a name for a known key, else 401. Takes the first X-Api-Key, as the mappings of most libraries do."""

    def __init__(self):
        self.keys = {KEY: "laptop", OTHER: "dashboard"}
        self.allows = "204 No Content"
        super().__init__()

    def serve(self, connection, stream):
        _, headers = read_head(stream)
        shown = [value for name, value in headers if name == "x-api-key"]
        name = self.keys.get(shown[0]) if shown else None
        answer = f"{self.allows}\r\nX-Auth-User: {name}" if name else "401 Unauthorized\r\nContent-Length: 0"
        connection.sendall(f"HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n".encode())


# --- a client


class Client:
    def __init__(self, port, *headers):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self.stream = self.socket.makefile("rb")
        lines = ["GET /ws HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
                 "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)).decode(), *headers]
        self.socket.sendall("".join(line + "\r\n" for line in lines).encode() + b"\r\n")
        status, self.headers = read_head(self.stream)
        self.status = int(status.split(" ")[1]) if status else 0
        length = dict(self.headers).get("content-length", "0")
        self.body = "" if self.status == 101 else self.stream.read(int(length)).decode()
        self.seen = read_frame(self.stream)[1].decode() if self.status == 101 else ""

    def says(self):
        """What becomes of a message: `stays open`, or how the connection ended."""
        try:
            self.socket.sendall(frame(1, b"still here", True))
            while got := read_frame(self.stream):
                if got == (1, b"still here"):
                    return "stays open"
                if got[0] == 8:
                    return f"closed, {struct.unpack('>H', got[1][:2])[0]}" if got[1] else "closed, no code"
        except OSError:
            pass
        return "cut off"

    def close(self):
        self.socket.close()


def status(port, *headers):
    client = Client(port, *headers)
    client.close()
    return client.status


def refusal(port, *headers):
    """What a client can read of it, without what differs from one request to the next."""
    client = Client(port, *headers)
    client.close()
    challenge = dict(client.headers).get("www-authenticate")
    return re.sub(r"[0-9a-f-]{16,}", "", client.body), challenge


def shows(key):
    return f"X-Api-Key: {key}"


# --- the proxies


def edited(text, edit):
    for old, new in edit:
        if old not in text:
            raise SystemExit(f"no {old!r} in\n{text}")
        text = text.replace(old, new)
    return text


def remedy(line):
    """A line that the page recommends, which has to be there to be tried."""
    if f"`{line}`" not in PAGE:
        raise SystemExit(f"docs/migrating.md does not say {line}")
    return line


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Proxy:
    """One example, in a directory of its own, with the ports of the page replaced by free ones.

    `edit` is what the page says about changing it: pairs of a text of the example and what stands there instead.
    """

    def __init__(self, name, files, start, reload, ports, front=8080, edit=(), ready=lambda port: True):
        self.directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=SCRATCH))
        self.ports = {8080: free_port(), **ports}
        self.port = self.ports[front]
        self.files = {file: self.placed(edited(example(block), edit)) for file, block in files.items()}
        self.start, self.reload_command, self.ready = start, reload, ready
        self.write()

    def placed(self, text):
        for written, used in self.ports.items():
            text = re.sub(rf":{written}\b", f":{used}", text)
        return text.replace("/etc/haproxy/keys.map", str(self.directory / "keys.map"))

    def write(self):
        for file, text in self.files.items():
            (self.directory / file).write_text(text)

    def __enter__(self):
        self.log = open(self.directory / "log", "w")
        command = self.start(self)
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd=self.directory,
                                        env={**os.environ, "HOME": str(self.directory)})
        try:
            until(lambda: self.answers() and self.ready(self.port), f"{command[0]} listens")
        except (TimeoutError, ChildProcessError) as fault:
            self.__exit__()
            raise SystemExit(f"{fault}\n{(self.directory / 'log').read_text()}") from fault
        return self

    def answers(self):
        if self.process.poll() is not None:
            raise ChildProcessError(f"{self.process.args[0]} ended at once")
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", self.port), timeout=1).close() is None

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def remove_laptop(self):
        """Deletes every line about the laptop's key from the files, and has them read again."""
        for file, text in self.files.items():
            kept = [line for line in text.splitlines(True) if "laptop" not in line.lower()]
            self.files[file] = "".join(kept)
        self.write()
        self.reload_command(self)


def nginx(block, **ports):
    def start(proxy):
        scratch = "".join(f"{kind}_temp_path {proxy.directory}/{kind};\n"
                          for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
        (proxy.directory / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; pid {proxy.directory}/pid; error_log stderr;\nevents {{}}\n"
            f"http {{ access_log off;\n{scratch}include {proxy.directory}/site.conf; }}\n")
        return ["nginx", "-e", "stderr", "-p", str(proxy.directory), "-c", str(proxy.directory / "nginx.conf")]
    return Proxy(block, {"site.conf": block}, start, lambda proxy: proxy.process.send_signal(signal.SIGHUP), **ports)


def haproxy(block, *, keys=None, **ports):
    files = {"haproxy.cfg": block, **({"keys.map": keys} if keys else {})}
    start = lambda proxy: ["haproxy", "-W", "-S", f"unix@{proxy.directory}/master", "-f", "haproxy.cfg"]

    def reload(proxy):
        """Through the socket of the master process: a signal so soon after the start can get lost."""
        def asked():
            with socket.socket(socket.AF_UNIX) as master, contextlib.suppress(OSError):
                master.settimeout(DEADLINE)
                master.connect(str(proxy.directory / "master"))
                master.sendall(b"reload\n")
                while master.recv(4096):
                    pass
                return True
        until(asked, "the master process of HAProxy listens")
    return Proxy(block, files, start, reload, **ports)


def caddy(block, **ports):
    admin = free_port()

    def config(proxy):
        (proxy.directory / "whole").write_text(f"{{\n\tadmin 127.0.0.1:{admin}\n}}\n" + proxy.files["Caddyfile"])

    def start(proxy):
        config(proxy)
        return ["caddy", "run", "--config", "whole", "--adapter", "caddyfile"]

    def reload(proxy):
        config(proxy)
        subprocess.run(["caddy", "reload", "--config", "whole", "--adapter", "caddyfile",
                        "--address", f"127.0.0.1:{admin}"], cwd=proxy.directory, check=True,
                       stdout=proxy.log, stderr=proxy.log, timeout=DEADLINE)
    return Proxy(block, {"Caddyfile": block}, start, reload, **ports)


ENVOY = """
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: door
  address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: door
        route_config:
          virtual_hosts:
          - {{ name: all, domains: ["*"], routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: chat, timeout: 0s }} }}] }}
{parts}
"""
ENVOY_CLUSTER = """
  - name: {name}
    load_assignment:
      cluster_name: {name}
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}]
"""


def indented(text, by):
    return "".join(" " * by + line for line in text.splitlines(True))


def envoy(block, *, filters=None, chat=9000, **ports):
    """The parts that the page prints, with a listener around them that Envoy reads again when its file is replaced."""
    def compose(proxy):
        parts = proxy.files["parts"]
        if filters:
            # In the place of the first filter.
            head, tail = parts.index("  - name:"), parts.index("  - name: envoy.filters.http.router")
            parts = parts[:head] + indented(proxy.files["filter"], 2) + parts[tail:]
        (proxy.directory / "new").write_text(ENVOY.format(port=proxy.port, parts=indented(parts, 8)))
        os.rename(proxy.directory / "new", proxy.directory / "listeners.yaml")

    def start(proxy):
        compose(proxy)
        clusters = {"chat": proxy.ports[chat], "keys": proxy.ports[9100]}
        written = "".join(ENVOY_CLUSTER.format(name=name, port=port) for name, port in clusters.items())
        (proxy.directory / "envoy.yaml").write_text(
            "node: { id: a, cluster: a }\n"
            f"dynamic_resources: {{ lds_config: {{ path_config_source: {{ path: {proxy.directory}/listeners.yaml }} }} }}\n"
            f"static_resources:\n  clusters:{written}")
        return [os.environ["ENVOY"], "-c", "envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
    files = {"parts": block, **({"filter": filters} if filters else {})}
    return Proxy(block, files, start, compose, **ports)


def traefik(block, **ports):
    """Its file is watched. It asks nobody whether there is a newer version, and reports to nobody."""
    start = lambda proxy: [os.environ["TRAEFIK"], f"--entryPoints.web.address=127.0.0.1:{proxy.port}",
                           "--providers.file.filename=dynamic.yaml", "--global.checkNewVersion=false",
                           "--global.sendAnonymousUsage=false"]
    # It listens before it has read its file, and knows no router until then.
    return Proxy(block, {"dynamic.yaml": block}, start, lambda proxy: None, ready=lambda port: status(port) != 404, **ports)


def wsbouncer(block, *, keys=None, **ports):
    def start(proxy):
        proxy.files["wsbouncer.yaml"] += "admin: off\n"
        proxy.write()
        return [os.environ["WSBOUNCER"], "serve", "--config", "wsbouncer.yaml"]
    files = {"wsbouncer.yaml": block, **({"keys.yaml": keys} if keys else {})}
    return Proxy(block, files, start, lambda proxy: None, front=8090, **ports)


# --- what is looked at


def names(port):
    """What the service reads as the name of the caller, when a client with a good key says that it is `admin`."""
    headers = ("X-Auth-Key-Id", "X-Auth-User")
    forged = [f"{spelling}: admin" for name in headers for spelling in (name, name.replace("-", "_"))]
    client = Client(port, shows(KEY), *forged)
    client.close()
    seen = [line.split(": ") for line in client.seen.splitlines()]
    told = {name.lower(): [] for name in headers}
    for name, value in seen:
        if (name := name.replace("_", "-")) in told:
            told[name].append(value)
    # The header which the example sets, or both if it sets none: what a service would look at.
    set_here = [values for values in told.values() if "laptop" in values] or list(told.values())
    return ", ".join(sorted({value for values in set_here for value in values}, key=lambda value: value != "laptop"))


def observe(proxy, remove):
    """The cells of a row of the page's table."""
    port = proxy.port
    opened = Client(port, shows(KEY))
    row = [str(opened.status), f"{status(port)}, {status(port, shows(WRONG))}", str(status(port, shows(KEY.swapcase())))]
    row += [str(status(port, shows(KEY), shows(KEY)))]
    row += [f"{status(port, shows(KEY), shows(WRONG))}, {status(port, shows(WRONG), shows(KEY))}"]
    row += ["yes" if refusal(port) != refusal(port, shows(WRONG)) else "no"]
    row += ["yes" if KEY in opened.seen else "no"]
    row += [names(port)]
    page = Client(port, f"Sec-WebSocket-Protocol: x-api-key, {KEY}")
    selected = dict(page.headers).get("sec-websocket-protocol")
    row += [f"{page.status}, `{selected}`" if selected else str(page.status)]
    page.close()
    other = Client(port, shows(OTHER))
    remove()
    until(lambda: status(port, shows(KEY)) != 101, f"the removed key is refused; until then: {row}")
    row += [opened.says(), other.says()]
    opened.close()
    other.close()
    return row


def compare(name, version, row):
    cells = [f"{name} {version}", *row]
    line = "| " + " | ".join(cells) + " |"
    title = cells[0]
    if line in PAGE.splitlines():
        report(f"{title}: {', '.join(row)}", True)
    else:
        says = [other for other in PAGE.splitlines() if other.startswith(f"| {name} ")]
        report(title, False, f"seen: {line}\n    page: {says[0] if says else 'no such row'}")


def check_remedies(ports):
    """The lines that the page offers to those who stay where they are."""
    hidden = [
        ("nginx", nginx, "nginx-map", "        proxy_read_timeout", remedy('proxy_set_header X-Api-Key "";')),
        ("HAProxy", haproxy, "haproxy-acl", "    default_backend", remedy("http-request del-header X-Api-Key")),
        ("Caddy", caddy, "caddy-header", "reverse_proxy 127.0.0.1:9000", remedy("header_up -X-Api-Key")),
    ]
    for title, make, block, before, line in hidden:
        new = f"{before} {{\n{line}\n}}" if make is caddy else f"{line}\n{before}"
        with make(block, ports=ports, edit=[(before, new)]) as proxy:
            client = Client(proxy.port, shows(KEY))
            report(f"{title}: {line}: 101, and the key stays there",
                   client.status == 101 and KEY not in client.seen, f"{client.status} {client.seen}")
            client.close()
    line = remedy('headers: { customRequestHeaders: { X-Api-Key: "" } }')
    edit = [("    key:\n", f"    hide: {{ {line} }}\n    key:\n"), ("[key]", "[key, hide]")]
    with traefik("traefik-forward-auth", ports=ports, edit=edit) as proxy:
        client = Client(proxy.port, shows(KEY))
        report(f"Traefik: {line}: 101, and the key stays there",
               client.status == 101 and KEY not in client.seen, f"{client.status} {client.seen}")
        client.close()
    exact = remedy('"~^Laptop-Example-Key-0123456789$"')
    with nginx("nginx-map", ports=ports, edit=[(f'"{KEY}"', exact)]) as proxy:
        seen = status(proxy.port, shows(KEY)), status(proxy.port, shows(KEY.swapcase()))
        report("nginx: a regular expression in the map tells capitals from small letters", seen == (101, 401), str(seen))
    with caddy("caddy-header", ports=ports, edit=[(KEY, KEY[:6] + "*")]) as proxy:
        seen = status(proxy.port, shows(KEY)), status(proxy.port, shows(KEY[:6] + "-anything"))
        report("Caddy: a star in a value matches anything", seen == (101, 101), str(seen))


def version(command, pattern):
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return re.search(pattern, ran.stdout + ran.stderr).group(1)


def main():
    service, authorizer = Service(), Authorizer()
    ports = {9000: service.port, 9100: authorizer.port}
    versions = {
        "nginx": version(["nginx", "-v"], r"nginx/([\d.]+)"),
        "HAProxy": version(["haproxy", "-v"], r"version ([\d.]+)"),
        "Caddy": version(["caddy", "version"], r"v?([\d.]+)"),
        "Envoy": version([os.environ["ENVOY"], "--version"], r"/([\d.]+)/"),
        "Traefik": version([os.environ["TRAEFIK"], "version"], r"Version:\s+([\d.]+)"),
    }

    rows = [
        ("nginx", "map", lambda: nginx("nginx-map", ports=ports)),
        ("nginx", "auth_request", lambda: nginx("nginx-auth-request", ports=ports)),
        ("HAProxy", "ACL", lambda: haproxy("haproxy-acl", ports=ports)),
        ("HAProxy", "map file", lambda: haproxy("haproxy-map", keys="haproxy-map-keys", ports=ports)),
        ("Caddy", "header", lambda: caddy("caddy-header", ports=ports)),
        ("Caddy", "forward_auth", lambda: caddy("caddy-forward-auth", ports=ports)),
        ("Envoy", "RBAC", lambda: envoy("envoy-rbac", ports=ports)),
        ("Envoy", "ext_authz", lambda: envoy("envoy-rbac", filters="envoy-ext-authz", ports=ports)),
        ("Traefik", "ForwardAuth", lambda: traefik("traefik-forward-auth", ports=ports)),
    ]
    for program, way, make in rows:
        authorizer.keys = {KEY: "laptop", OTHER: "dashboard"}
        authorizer.allows = "200 OK\r\nContent-Length: 0" if program == "Envoy" else "204 No Content"
        with case(f"{program}, {way}"), make() as proxy:
            # Where a service knows the keys, it forgets one, and there is nothing for the proxy to read again.
            asks = way in ("auth_request", "forward_auth", "ext_authz", "ForwardAuth")
            row = observe(proxy, (lambda: authorizer.keys.pop(KEY)) if asks else proxy.remove_laptop)
            compare(f"{program}, {way},", versions[program], row)

    authorizer.keys, authorizer.allows = {KEY: "laptop", OTHER: "dashboard"}, "204 No Content"
    with case("Envoy, 204"), envoy("envoy-rbac", filters="envoy-ext-authz", ports=ports) as proxy:
        seen = status(proxy.port, shows(KEY))
        report("Envoy: a service that says yes with 204 says no", seen == 204, str(seen))

    bouncers = {
        "wsbouncer-keys": lambda used: wsbouncer("wsbouncer-keys", ports=used),
        "wsbouncer-user": lambda used: wsbouncer("wsbouncer-user", ports=used),
        "wsbouncer-key-file": lambda used: wsbouncer("wsbouncer-key-file", keys="wsbouncer-key-file-keys", ports=used),
    }
    for name, make in bouncers.items():
        with case(name), make({**ports, 8090: free_port()}) as proxy:
            client = Client(proxy.port, shows(KEY), "X-Auth-User: admin", "X-Auth-Key-Id: admin")
            header = "x-auth-user" if name == "wsbouncer-user" else "x-auth-key-id"
            told = [line for line in client.seen.splitlines() if line.startswith(header + ":")]
            report(f"{name}: the service is told who it is, once", told == [f"{header}: laptop"], str(told))
            client.close()
            compare(f"wsbouncer, {BOUNCERS[name]},", "this version", observe(proxy, proxy.remove_laptop))

    # What stays in front: the answers of wsbouncer come through, and so does the end of a revoked connection.
    fronts = {"nginx-front": nginx, "haproxy-front": haproxy, "caddy-front": caddy, "traefik-front": traefik}
    for name, front in fronts.items():
        used = {**ports, 8090: free_port()}
        with case(name), wsbouncer("wsbouncer-keys", ports=used) as bouncer, front(name, ports=used) as proxy:
            opened, other = Client(proxy.port, shows(KEY)), Client(proxy.port, shows(OTHER))
            refused = [status(proxy.port), status(proxy.port, shows(WRONG)), status(proxy.port, shows(KEY.swapcase()))]
            refused += [status(proxy.port, shows(KEY), shows(KEY))]
            report(f"{name}: 101 with the key, 401 without it",
                   [opened.status, *refused] == [101, 401, 401, 401, 400], str(refused))
            report(f"{name}: the key does not reach the service", KEY not in opened.seen, opened.seen)
            bouncer.remove_laptop()
            until(lambda: status(proxy.port, shows(KEY)) == 401, "the removed key is refused")
            ends = [opened.says(), other.says()]
            report(f"{name}: the removed key's connection is closed, no other",
                   ends == ["closed, 4401", "stays open"], str(ends))
            opened.close()
            other.close()

    check_remedies(ports)
    failed = results.count(False)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


with tempfile.TemporaryDirectory(prefix="migrating-") as SCRATCH:
    os.chmod(SCRATCH, 0o755)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
