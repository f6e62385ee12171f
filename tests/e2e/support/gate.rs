//! The built binary under test: started on port 0 with a file in a directory of its own, its log read line by line.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::client::{Request, WS_ACCEPT, plain_get};
use super::head::{Answer, status};
use super::log::{Log, LogLine};
use super::metrics::Metrics;
use super::setup::{complete, config};
use super::wait::{eventually, eventually_some};
use super::wire::{Stream, Wire, show};

/// The running binary. It is killed when this is dropped, and its log is shown when the test fails.
pub struct Gate {
    child: Option<Child>,
    log: Arc<Log>,
    dir: TempDir,
    file: PathBuf,
    /// Where clients connect.
    pub addr: SocketAddr,
    pub admin: SocketAddr,
}

impl Gate {
    #[track_caller]
    pub fn start(yaml: &str) -> Self {
        config(yaml).start()
    }

    /// Takes over a process that was just started.
    #[track_caller]
    pub fn follow(mut child: Child, dir: TempDir, file: PathBuf) -> Self {
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take();
        log.follow(child.stdout.take().unwrap(), |log| &log.out);
        let mut gate = Self { child: Some(child), log, dir, file, addr: unset(), admin: unset() };
        if let Some(stderr) = stderr {
            gate.log.follow(stderr, |log| &log.err);
            gate.wait_until_listening();
        } else {
            let [admin, addr] = eventually_some("the binary listens", || gate.bound());
            (gate.admin, gate.addr) = (admin, addr);
        }
        gate
    }

    #[track_caller]
    fn wait_until_listening(&mut self) {
        let line = eventually_some("the binary listens", || {
            if let Some(code) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                eventually("the log ends", || Arc::strong_count(&self.log) == 1);
                panic!("the binary ended with {code}: {}", self.raw_log());
            }
            self.err_lines().into_iter().find(|line| line.contains("listening"))
        });
        let address = |field: &str| {
            let json: Option<Value> = serde_json::from_str(&line).ok();
            let value = json.map_or_else(
                || line.split(&format!("{field}=")).nth(1).map(|rest| rest.trim_start_matches('"').to_owned()),
                |json| json[field].as_str().map(str::to_owned),
            );
            let end = |c: char| c == ',' || c == '"' || c.is_whitespace();
            value.and_then(|text| text.split(end).next().and_then(|text| text.parse().ok()))
        };
        self.addr = address("listen").unwrap_or_else(|| panic!("no listen address in {line}"));
        self.admin = address("admin").unwrap_or_else(unset);
    }

    /// Where it listens, without asking its log. The admin listener has an address of its own (`Setup::log_to`).
    fn bound(&mut self) -> Option<[SocketAddr; 2]> {
        assert!(self.is_running(), "the binary has ended");
        let sockets = self.descriptors();
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let find = |host: [u8; 4]| {
            table.lines().skip(1).find_map(|line| {
                const LISTENING: &str = "0A";
                let fields: Vec<&str> = line.split_whitespace().collect();
                let (address, port) = fields[1].split_once(':')?;
                let is_it = fields[3] == LISTENING
                    && address == format!("{:08X}", u32::from_le_bytes(host))
                    && sockets.contains(&format!("socket:[{}]", fields[9]));
                is_it.then(|| SocketAddr::from((host, u16::from_str_radix(port, 16).unwrap())))
            })
        };
        Some([find([127, 0, 0, 2])?, find([127, 0, 0, 1])?])
    }

    /// What its descriptors are.
    pub fn descriptors(&self) -> Vec<String> {
        let all = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        // One that is closed at this moment has no name any more.
        all.filter_map(|one| Some(fs::read_link(one.ok()?.path()).ok()?.to_string_lossy().into_owned())).collect()
    }

    // ---- talking to it

    #[track_caller]
    pub fn connect(&self) -> Wire {
        Wire::connect(self.addr)
    }

    /// Connects from this loopback address.
    #[track_caller]
    pub fn connect_from(&self, from: [u8; 4]) -> Wire {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::from(from), 0)).into()).unwrap();
        socket.connect(&self.addr.into()).unwrap();
        Wire::new(Stream::Tcp(socket.into()))
    }

    /// Connects and sends.
    #[track_caller]
    pub fn send(&self, bytes: impl Into<Vec<u8>>) -> Wire {
        let mut wire = self.connect();
        wire.send(bytes.into());
        wire
    }

    /// One request and its whole answer.
    #[track_caller]
    pub fn ask(&self, bytes: impl Into<Vec<u8>>) -> Answer {
        self.send(bytes).read_answer()
    }

    /// Only the status of the answer; what was opened is closed again.
    #[track_caller]
    pub fn ask_status(&self, bytes: impl Into<Vec<u8>>) -> u16 {
        status(&self.send(bytes).read_head())
    }

    /// A handshake that succeeds; the 101 is checked.
    #[track_caller]
    pub fn open(&self, request: impl Into<Vec<u8>>) -> Wire {
        self.send(request).opened().0
    }

    /// A request that is refused: the answer, the log line and the metric must all say the same.
    #[track_caller]
    pub fn refuses(&self, request: impl Into<Vec<u8>>, status: u16, reason: &str) -> Answer {
        let count = || self.metric("wsbouncer_refusals_total", &[("reason", reason)]);
        let before = count();
        let request = request.into();
        let sent = Shown(&request);
        let answer = self.ask(&*request);
        self.check_refusal(&answer, status, reason);
        let after = eventually_some("the refusal is counted", || Some(count()).filter(|after| *after > before));
        assert_eq!(after, before + 1.0, "one refusal counts once");
        sent.well();
        answer
    }

    /// What every refusal looks like in the answer and in the log.
    #[track_caller]
    pub fn check_refusal(&self, answer: &Answer, status: u16, reason: &str) -> LogLine {
        assert_eq!((answer.status(), &*answer.field("reason")), (status, reason), "{}", answer.text());
        assert_eq!(answer.head.get("Content-Type"), Some("application/problem+json"));
        let connection = answer.head.get("Connection").unwrap_or_default().to_ascii_lowercase();
        assert!(connection.split(',').any(|token| token.trim() == "close"), "{:?}", answer.head);
        let body = answer.json();
        assert_eq!(body["status"], status);
        for field in ["type", "title", "detail"] {
            assert!(!answer.field(field).is_empty(), "{field} in {body}");
        }
        let id = answer.field("request_id");
        assert_eq!(answer.head.get("X-Request-Id"), Some(&*id));
        let line = self.log_line(|line| line.is("refused") && line.get("id") == id);
        assert_eq!((line.get("reason").as_str(), line.get("status")), (reason, status.to_string()), "{line:?}");
        let lines = self.log_lines(|line| line.is("refused") && line.get("id") == id);
        assert_eq!(lines.len(), 1, "exactly one line for one refusal: {lines:?}");
        line
    }

    /// A request that the gate answers for the upstream: nothing of it reached the upstream.
    #[track_caller]
    pub fn refuses_before(
        &self,
        backend: &super::Backend,
        request: impl Into<Vec<u8>>,
        status: u16,
        reason: &str,
    ) -> Answer {
        let before = backend.accepted();
        let answer = self.refuses(request, status, reason);
        assert_eq!(backend.accepted(), before, "the upstream was dialled for {reason}");
        answer
    }

    // ---- admin

    #[track_caller]
    pub fn admin(&self, method: &str, path: &str) -> Answer {
        let request = plain_get(path).first_line(&format!("{method} {path} HTTP/1.1"));
        self.ask_admin(&request.host(&self.admin.to_string()).with("Connection", "close").with("Content-Length", "0"))
    }

    #[track_caller]
    pub fn ask_admin(&self, request: &Request) -> Answer {
        let mut wire = Wire::connect(self.admin);
        wire.send(request.bytes());
        let head = wire.read_head();
        let (body, _) = wire.read_to_close();
        let body = if head.has("Transfer-Encoding") { super::head::unchunked(body) } else { body };
        Answer { head, body }
    }

    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin("GET", "/metrics").text())
    }

    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().get(name, labels)
    }

    #[track_caller]
    pub fn ready(&self) -> Answer {
        self.admin("GET", "/readyz")
    }

    /// What `/connections` lists.
    #[track_caller]
    pub fn connections(&self) -> Vec<Value> {
        let answer = self.admin("GET", "/connections").json();
        answer["connections"].as_array().unwrap_or_else(|| panic!("no list in {answer}")).clone()
    }

    #[track_caller]
    pub fn wait_for_open(&self, count: usize) {
        eventually("so many tunnels are open", || self.connections().len() == count);
    }

    #[track_caller]
    pub fn wait_for_pending(&self, count: f64) {
        eventually("so many handshakes are under way", || self.metric("wsbouncer_connections_pending", &[]) == count);
    }

    // ---- log

    pub fn err_lines(&self) -> Vec<String> {
        self.log.err.lock().unwrap().clone()
    }

    pub fn out_lines(&self) -> Vec<String> {
        self.log.out.lock().unwrap().clone()
    }

    pub fn raw_log(&self) -> String {
        self.err_lines().join("\n")
    }

    /// All lines so far that fit. Everything on stderr has to be JSON.
    #[track_caller]
    pub fn log_lines(&self, fits: impl Fn(&LogLine) -> bool) -> Vec<LogLine> {
        self.err_lines().iter().map(|line| LogLine::parse(line)).filter(|line| fits(line)).collect()
    }

    /// The first line that fits, waited for.
    #[track_caller]
    pub fn log_line(&self, fits: impl Fn(&LogLine) -> bool) -> LogLine {
        eventually_some("the log line appears", || self.log_lines(&fits).into_iter().next())
    }

    /// The line of the tunnel that closed for this cause.
    #[track_caller]
    pub fn closed(&self, cause: &str) -> LogLine {
        self.log_line(|line| line.is("tunnel closed") && line.get("cause") == cause)
    }

    // ---- its files

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("still running").id()
    }

    /// The file as it is now.
    pub fn yaml(&self) -> String {
        fs::read_to_string(&self.file).unwrap()
    }

    /// What `config` would write: listeners included, so that an edit does not change them.
    pub fn complete(&self, yaml: &str) -> String {
        complete(yaml)
    }

    /// Replaces a file as careful editors do, by a rename.
    #[track_caller]
    pub fn replace(&self, name: &str, content: &str) {
        let new = self.dir().join(format!(".{name}.new"));
        fs::write(&new, content).unwrap();
        fs::rename(new, self.dir().join(name)).unwrap();
    }

    /// New rules, and the reload seen.
    #[track_caller]
    pub fn edit_config(&self, yaml: &str) {
        self.reloads(|| self.replace("wsbouncer.yaml", &complete(yaml)));
    }

    /// Runs a change and waits until it was loaded.
    #[track_caller]
    pub fn reloads(&self, change: impl FnOnce()) -> LogLine {
        self.next_line("reloaded", change)
    }

    /// Runs a change and waits until it was found to be bad.
    #[track_caller]
    pub fn fails_to_reload(&self, change: impl FnOnce()) -> LogLine {
        self.next_line("reload failed", change)
    }

    /// The first line with this message that comes after the change.
    #[track_caller]
    pub fn next_line(&self, message: &str, change: impl FnOnce()) -> LogLine {
        let before = self.log_lines(|line| line.is(message)).len();
        change();
        eventually_some(message, || self.log_lines(|line| line.is(message)).into_iter().nth(before))
    }

    // ---- its life

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Signals a process that may have ended by itself, and is not waited for yet.
    pub fn try_signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        let _ = kill_process(pid, signal);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn exit(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("still running");
        eventually_some("the binary ends", || child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Memory that it holds, in bytes.
    pub fn resident(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    /// Processor time that it has used, in hundredths of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The name of the program may hold blanks; behind it the 12th and 13th are user and system time (proc(5)).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Nothing ever panics in it, and it is still there.
    #[track_caller]
    pub fn is_well(&mut self) {
        assert!(self.is_running());
        assert!(!self.raw_log().contains("panicked"), "{}", self.raw_log());
        assert_eq!(self.admin("GET", "/healthz").status(), 200);
    }
}

impl Wire {
    /// The 101 that has to come now.
    #[track_caller]
    pub fn opened(mut self) -> (Self, super::head::Head) {
        let head = self.read_head();
        if status(&head) != 101 {
            panic!("not opened: {} {}", head.text(), String::from_utf8_lossy(&self.read_to_close().0));
        }
        assert_eq!(head.get("Upgrade").map(str::to_ascii_lowercase).as_deref(), Some("websocket"));
        let mut connection = head.get("Connection").unwrap_or_default().split(',');
        assert!(connection.any(|token| token.trim().eq_ignore_ascii_case("upgrade")), "{head:?}");
        assert_eq!(head.get("Sec-WebSocket-Accept"), Some(WS_ACCEPT));
        (self, head)
    }
}

fn unset() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

/// What was sent, in the output of a test that fails over it.
struct Shown<'b>(&'b [u8]);

impl Shown<'_> {
    fn well(mut self) {
        self.0 = b"";
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if thread::panicking() && !self.0.is_empty() {
            println!("---- sent\n{}", show(self.0).escape_debug());
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            // Stdout, because the test harness shows it together with the failure.
            println!("---- file\n{}\n---- log\n{}", show(&fs::read(&self.file).unwrap_or_default()), self.raw_log());
        }
    }
}
