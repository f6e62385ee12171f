"""The tables that README and docs/performance.md show, from the results of a run."""

import statistics

from proxies import TITLES

# (test, what it is, unit, field, decimals, factor, targets by peer, least rate by peer): a ratio has to be at most the target.
ROWS = [
    ("handshake", "handshake", "µs", "proxy_us", 1, 1, {"haproxy": 0.90, "nginx": 1.00}, {}),
    ("echo64x32", "echo, 64 connections, 32 B", "µs", "proxy_us", 2, 1, {"haproxy": 0.90, "nginx": 1.05}, {}),
    ("echo64x1k", "echo, 64 connections, 1 KiB", "µs", "proxy_us", 2, 1, {"haproxy": 0.90, "nginx": 1.05}, {}),
    ("echo1kx125", "echo, 1,000 connections, 125 B", "µs", "proxy_us", 2, 1, {"haproxy": 0.75, "nginx": 0.90}, {}),
    ("down64k", "64 KiB frames down, per MB", "µs", "proxy_us", 0, 1, {"haproxy": 0.55, "nginx": 0.45}, {"haproxy": 1.4}),
    ("up64k", "64 KiB frames up, per MB", "µs", "proxy_us", 0, 1, {"haproxy": 0.55, "nginx": 0.45}, {"haproxy": 1.4}),
    ("refusal", "refusal", "µs", "proxy_us", 1, 1, {"haproxy": 0.90, "nginx": 1.00}, {}),
    ("idle", "idle tunnel, Pss", "kB", "pss_bytes", 2, 1 / 1024, {"haproxy": 0.34, "nginx": 0.09}, {}),
    ("latency", "added latency p99, half load, 32 B", "µs", "added_p99_us", 0, 1, {"haproxy": 1.0, "nginx": 1.0}, {}),
    ("latency125", "added latency p99, half load, 125 B", "µs", "added_p99_us", 0, 1, {"haproxy": 1.0, "nginx": 1.0}, {}),
]


class Results:
    def __init__(self, lines):
        self.run = next((line for line in lines if line.get("kind") == "run"), {})
        self.rows = [line for line in lines if line.get("kind") == "result"]
        for row in self.rows:
            if row["test"].startswith("latency"):
                direct = self.one(row["test"], "direct", row["round"])
                row["added_p99_us"] = row["p99_us"] - direct["p99_us"] if direct else None

    def one(self, test, proxy, round_):
        same = (row for row in self.rows if (row["test"], row["proxy"], row["round"]) == (test, proxy, round_))
        return next(same, None)

    def proxies(self):
        """In the order of the titles; the direct way is not one."""
        return [name for name in TITLES if name != "direct" and any(row["proxy"] == name for row in self.rows)]

    def has(self, test):
        return any(row["test"] == test for row in self.rows)

    def values(self, test, proxy, field):
        """By round."""
        rows = (row for row in self.rows if row["test"] == test and row["proxy"] == proxy)
        return {row["round"]: row[field] for row in rows if row.get(field) is not None}

    def median(self, test, proxy, field):
        values = self.values(test, proxy, field).values()
        return statistics.median(values) if values else None

    def ratios(self, test, field, of, to):
        """One for each round in which both took part: what slows the machine down for a while slows both."""
        if field == "added_p99_us":
            # A difference of two figures that vary, now and then below nothing: only the medians can be divided.
            mine, theirs = self.median(test, of, field), self.median(test, to, field)
            return [max(mine, 0) / theirs] if mine is not None and (theirs or 0) > 0 else []
        mine, theirs = self.values(test, of, field), self.values(test, to, field)
        return sorted(mine[at] / theirs[at] for at in mine if theirs.get(at, 0) > 0)


def number(value, decimals):
    return "–" if value is None else f"{value:,.{decimals}f}"


def spread(ratios):
    """The median, and from where to where it went."""
    if not ratios:
        return "–"
    middle = f"{statistics.median(ratios):.2f}"
    return middle if len(ratios) < 3 else f"{middle} ({ratios[0]:.2f}–{ratios[-1]:.2f})"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def title(results, name):
    version = results.run.get("versions", {}).get(name, "")
    return TITLES[name] if name in ("wsbouncer", "against") or not version else f"{TITLES[name]} {version}"


def cost_table(results):
    names = results.proxies()
    peers = [name for name in ("haproxy", "nginx") if name in names]
    header = ["CPU of the proxy per unit", *(title(results, name) for name in names)]
    for peer in peers:
        header += [f"/ {TITLES[peer]}", "target"]
    rows = []
    for test, what, unit, field, decimals, factor, targets, least_rates in ROWS:
        if not results.has(test):
            continue
        medians = [results.median(test, name, field) for name in names]
        row = [f"{what}, {unit}"]
        row += [number(None if value is None else value * factor, decimals) for value in medians]
        for peer in peers:
            row += verdict(results, test, field, peer, targets.get(peer), least_rates.get(peer))
        rows.append(row)
    return table(header, rows)


def verdict(results, test, field, peer, target, least_rate):
    """The ratio to a peer, and whether it is as wanted."""
    ratios = results.ratios(test, field, "wsbouncer", peer)
    if not ratios or target is None:
        return [spread(ratios), "–"]
    is_met = round(statistics.median(ratios), 2) <= target
    cell, wanted = spread(ratios), f"≤ {target:.2f}"
    rates = results.ratios(test, "rate", "wsbouncer", peer) if least_rate else []
    if rates:
        is_met &= round(statistics.median(rates), 2) >= least_rate
        cell += f", rate × {spread(rates)}"
        wanted += f", rate × {least_rate:.1f}"
    return [cell, f"{wanted} {'met' if is_met else '**missed**'}"]


def rate_table(results):
    names = results.proxies()
    peers = [name for name in ("haproxy", "nginx") if name in names]
    header = ["per second", *(title(results, name) for name in names), *(f"/ {TITLES[peer]}" for peer in peers)]
    rows = []
    for test, what, *_ in ROWS:
        if test == "idle" or test.startswith("latency") or not results.has(test):
            continue
        row = [what.replace(", per MB", ", MB"), *(number(results.median(test, name, "rate"), 0) for name in names)]
        row += [spread(results.ratios(test, "rate", "wsbouncer", peer)) for peer in peers]
        rows.append(row)
    return table(header, rows) if rows else ""


def latency_table(results):
    rows = []
    for test in ("latency", "latency125"):
        for name in ["direct", *results.proxies()] if results.has(test) else []:
            rate = results.median(test, name, "paced_rate")
            cells = [number(results.median(test, name, field), 0) for field in ("p50_us", "p99_us", "p999_us", "added_p99_us")]
            cores = results.median(test, name, "proxy_cores")
            rows.append([f"{test}, {number(rate, 0)} messages/s", title(results, name), *cells, number(cores, 2)])
    return table(["µs", "through", "p50", "p99", "p99.9", "added to p99", "CPUs used by the proxy"], rows) if rows else ""


def against_table(results):
    """One binary of wsbouncer with another: after, before."""
    if "against" not in results.proxies():
        return ""
    rows = []
    for test, what, unit, field, decimals, factor, *_ in ROWS:
        if results.has(test):
            both = [results.median(test, name, field) for name in ("against", "wsbouncer")]
            cells = [number(None if value is None else value * factor, decimals) for value in both]
            rates = "–" if test == "idle" or test.startswith("latency") else spread(results.ratios(test, "rate", "wsbouncer", "against"))
            rows.append([f"{what}, {unit}", *cells, spread(results.ratios(test, field, "wsbouncer", "against")), rates])
    return table(["wsbouncer", "other binary", "this one", "CPU or size, ratio", "rate, ratio"], rows)


def provenance(results):
    run = results.run
    versions = ", ".join(f"{TITLES[name]} {version}" for name, version in run.get("versions", {}).items() if version)
    logs = "on" if run.get("peer_logs") else "off"
    errors = sum(row.get("errors", 0) for row in results.rows)
    lines = [
        f"{run.get('date')}; {run.get('machine')}.",
        f"{versions}; tree: {run.get('source', 'unknown')}. Access logs of peers: {logs}; wsbouncer's log is on.",
        f"Medians of {run.get('rounds')} interleaved rounds of {run.get('seconds')} s each; ratios are medians of the rounds' "
        f"own ratios, with the smallest and the largest. {run.get('connections_idle'):,} idle tunnels. Errors: {errors}.",
    ]
    strangers = [row["stranger_cores"] for row in results.rows if "stranger_cores" in row]
    if strangers:
        lines.append(f"Others on the machine used {statistics.median(strangers):.2f} CPUs (median), {max(strangers):.2f} at most.")
    return "\n".join(lines)


def page(results):
    parts = [cost_table(results), rate_table(results), latency_table(results), against_table(results), provenance(results)]
    return "\n\n".join(part for part in parts if part)
