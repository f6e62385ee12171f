//! The protected service: where it is, and our half of the handshake with it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// One upstream of the file.
#[derive(Debug)]
pub struct Upstream {
    /// Its name in the file, or its URL where it stands in a route.
    pub name: Arc<str>,
    pub endpoint: Endpoint,
    /// `host: upstream` sends this as `Host`; `None` keeps the client's.
    pub host: Option<Box<str>>,
}

/// Where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A literal address: no look-up, ever.
    Address(SocketAddr),
    Name {
        host: Box<str>,
        port: u16,
    },
    Unix(PathBuf),
}
