//! Tells a service manager how it goes, in the words of sd_notify(3): a datagram to the socket that `NOTIFY_SOCKET`
//! names. Without that variable nobody is told, and nothing else is different.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tracing::warn;

/// A manager that does not read holds nothing up for longer. What is lost then is a word to it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct NotifySocket(Option<UnixDatagram>);

impl NotifySocket {
    /// What the environment names. A name that leads nowhere is reported, and nobody is told: the proxy is worth more
    /// than its manager's opinion of it.
    pub fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self(None) };
        match connect(&name) {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                warn!(%error, "NOTIFY_SOCKET cannot be used, the service manager is not told");
                Self(None)
            }
        }
    }

    /// Lines such as `READY=1`.
    pub fn say(&self, lines: &str) {
        let Some(socket) = &self.0 else { return };
        if let Err(error) = socket.send(lines.as_bytes()) {
            warn!(%error, "the service manager cannot be told");
        }
    }
}

/// A path, or with `@` in front a name without one (unix(7), "abstract").
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect_addr(&address)?;
    Ok(socket)
}
