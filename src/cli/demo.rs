//! `demo`: what `serve` runs, from a YAML file that is written for the occasion, with an echo service behind it.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio::net::TcpListener;

use super::{DemoArgs, echo, key, print, remark};
use crate::config;
use crate::secret::Digest;
use crate::server::{self, Server};

/// Runs until it is told to stop.
pub async fn run(args: &DemoArgs) -> ExitCode {
    match start(args.listen).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            remark(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn start(listen: SocketAddr) -> Result<(), String> {
    let says = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    // Before there is a directory to remove.
    let (stop, hurry) = server::signals().map_err(says("no signal handler"))?;
    let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(says("no port for the echo service"))?;
    let echo_address = echo.local_addr().map_err(says("no port for the echo service"))?;
    let key = key::generate().map_err(says("no key"))?;
    let yaml = yaml(listen, echo_address, Digest::of(key.as_bytes()));
    let scratch = Scratch::new().map_err(says("no temporary directory"))?;
    let file = scratch.write("wsbouncer.yaml", &yaml).map_err(says("cannot write the YAML file"))?;

    let config = config::load(&file).map_err(|problems| problems.to_string())?;
    let server = Server::bind(file.clone(), config).map_err(|error| cannot_listen(listen, &error))?;
    let lines = Lines {
        proxy: server.listen_addresses().first().copied().unwrap_or(listen),
        admin: server.admin_address().ok_or("the admin address is not open")?,
        key: &key,
        file: &file,
    };
    print(&lines.to_text()).map_err(says("cannot print"))?;
    tokio::select! {
        never = echo::serve(echo) => match never {},
        outcome = server.run(stop, hurry) => outcome.map_err(|error| error.to_string()),
    }
}

fn cannot_listen(listen: SocketAddr, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::AddrInUse {
        let other = SocketAddr::new(listen.ip(), 0);
        return format!(
            "{listen} is taken by another program; any free port will do as well: wsbouncer demo --listen {other}"
        );
    }
    error.to_string()
}

fn yaml(listen: SocketAddr, echo: SocketAddr, digest: Digest) -> String {
    let key = key::yaml("demo", digest).lines().map(|line| format!("  {line}\n")).collect::<String>();
    format!(
        "# Written by `wsbouncer demo`, and removed when it ends. Edit it while the demo runs: to save it is enough.\n\
         listen: \"{listen}\"\n\
         admin: 127.0.0.1:0\n\
         upstream: ws://{echo}    # the built-in echo service\n\
         # To revoke the key, delete the next four lines.\n\
         keys:\n{key}\
         drain: {{ timeout: 2s, spread: 0s }}\n"
    )
}

/// A directory of our own, gone when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
        let name = format!("wsbouncer-demo-{:016x}", u64::from_ne_bytes(bytes));
        let path = std::path::absolute(std::env::temp_dir().join(name))?;
        // Fails when somebody was there before us, so that the file cannot end up in a directory of theirs.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            remark(format_args!("warning: {} is left behind: {error}", self.0.display()));
        }
    }
}

/// What the user needs to see, and to paste.
struct Lines<'a> {
    proxy: SocketAddr,
    admin: SocketAddr,
    key: &'a str,
    file: &'a Path,
}

impl Lines<'_> {
    fn to_text(&self) -> String {
        let Self { proxy, admin, key, file } = self;
        let address = reachable(*proxy);
        let path = shell(&file.display().to_string());
        format!(
            r#"
The real wsbouncer, with an echo service behind it. Ctrl-C ends it.

  proxy   ws://{address}/
  key     {key}
  file    {path}
  admin   http://{admin}/   (/connections, /metrics, /readyz)

In a browser: open http://{admin}/healthz, press F12, and paste into the console
  ws = new WebSocket("ws://{address}/", ["x-api-key", "{key}"]); ws.onopen = () => ws.send("hello"); ws.onmessage = e => console.log("echo:", e.data); ws.onclose = e => console.log("closed:", e.code, e.reason)

In a terminal, with either of these clients; what you type comes back
  npx -y wscat -c 'ws://{address}/' -H 'X-Api-Key: {key}'
  websocat -H='X-Api-Key: {key}' 'ws://{address}/'

The handshake alone, with the key: 101, then curl waits two seconds for more
  {HANDSHAKE} -H 'X-Api-Key: {key}' 'http://{address}/'

The same without the key: 401, and why
  {HANDSHAKE} 'http://{address}/'

Try this: open a connection, then delete the key in the file, `keys:` included. The connection is closed with 4401
within a second. To do so by pasting, and to undo it
  sed -i.bak '/^keys:/,/sha256/d' {path}
  mv {path}.bak {path}

"#
        )
    }
}

/// A handshake, as far as its headers go. The key is the example of RFC 6455: any 16 bytes do.
const HANDSHAKE: &str = "curl -i -N --http1.1 --max-time 2 -H 'Connection: Upgrade' -H 'Upgrade: websocket' \
    -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=='";

/// Where a client on this machine finds a listener that is bound to every address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen {
        SocketAddr::V4(_) if listen.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) if listen.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        _ => listen.ip(),
    };
    SocketAddr::new(ip, listen.port())
}

/// A word for a POSIX shell; the temporary directory may have a blank in its name.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_sent_to_an_address_that_they_can_reach() {
        for (listen, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.1.2.3:1", "10.1.2.3:1"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), expected);
        }
    }

    #[test]
    fn paths_are_words_for_the_shell() {
        assert_eq!(shell("/tmp/a-b_c.yaml"), "/tmp/a-b_c.yaml");
        assert_eq!(shell("/tmp/a b"), "'/tmp/a b'");
        assert_eq!(shell("/tmp/it's"), r"'/tmp/it'\''s'");
        assert_eq!(shell("$(x)"), "'$(x)'");
    }

    #[test]
    fn the_directory_is_ours_alone_and_goes_with_us() {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let scratch = Scratch::new().unwrap();
        let file = scratch.write("x.yaml", "x").unwrap();
        let directory = scratch.0.clone();
        assert_eq!((mode(&directory), mode(&file)), (0o700, 0o600));
        assert!(scratch.write("x.yaml", "again").is_err(), "never through what stands there already");
        drop(scratch);
        assert!(!directory.exists());
    }

    #[test]
    fn a_taken_port_says_what_to_do() {
        let error = cannot_listen("127.0.0.1:8080".parse().unwrap(), &io::ErrorKind::AddrInUse.into());
        assert!(error.contains("127.0.0.1:8080 is taken") && error.ends_with("demo --listen 127.0.0.1:0"), "{error}");
    }
}
