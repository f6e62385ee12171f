//! Owns what runs: listeners, the admin listener, the reload task. Binds before it runs, and drains before it ends.

use std::io;
use std::net::{self, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::admin::Admin;
use crate::config::Config;
use crate::end::Cause;
use crate::limit::Space;
use crate::listener;
use crate::notify_socket::NotifySocket;
use crate::proxy::Proxy;
use crate::reload::Reloader;
use crate::spans::{BUILT_IN, export};
use crate::worker::{self, Workers};

/// A proxy whose addresses are bound.
pub struct Server {
    proxy: Arc<Proxy>,
    /// For each address as many sockets as there are workers.
    listeners: Vec<Vec<net::TcpListener>>,
    admin: Option<TcpListener>,
    reloader: Reloader,
    notify: Arc<NotifySocket>,
}

/// What a collector gets for the last spans.
const FAREWELL: Duration = Duration::from_secs(2);

impl Server {
    /// Binds every address. `path` is watched for changes from [`Server::run`] on.
    ///
    /// # Errors
    /// The address that cannot be bound, and why.
    pub fn bind(path: PathBuf, config: Config) -> io::Result<Self> {
        let settings = config.settings.clone();
        let listeners = settings.listen.iter().map(|address| bind_shared(*address)).collect::<Result<_, _>>()?;
        let admin = settings.admin.map(|address| bind(address, "admin").and_then(TcpListener::from_std)).transpose()?;
        let proxy = Arc::new(Proxy::new(config.rules, Space::of_this_process(worker::count())));
        let notify = Arc::new(NotifySocket::from_environment());
        let mut reloader = Reloader::new(path, settings, config.sources, proxy.clone(), notify.clone());
        reloader.warn(&config.warnings);
        Ok(Self { proxy, listeners, admin, reloader, notify })
    }

    /// The bound addresses, with the ports that the system chose.
    pub fn listen_addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|shared| shared.first()?.local_addr().ok()).collect()
    }

    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `stop`, then drains: until nobody is left, the drain's timeout, or `hurry`.
    ///
    /// # Errors
    /// When a part of it ended by itself: a gate that no longer follows its file, or no longer opens, is none. It drains
    /// then, too.
    pub async fn run(self, stop: impl Future<Output = ()>, hurry: impl Future<Output = ()>) -> io::Result<()> {
        self.announce();
        let Self { proxy, listeners, admin, reloader, notify } = self;
        let mut background = JoinSet::new();
        let mut workers = Workers::start(listeners, &proxy)?;
        if let Some(listener) = admin {
            let admin = Admin::new(proxy.clone(), &reloader);
            background.spawn(admin.serve(listener));
        }
        background.spawn(reloader.run());
        if BUILT_IN {
            let proxy = proxy.clone();
            background.spawn(async move { export::run(&proxy.spans, || proxy.rules.load().collector.clone()).await });
        }
        let outcome = tokio::select! {
            () = stop => Ok(()),
            () = workers.ended() => Err(io::Error::other("a worker ended by itself")),
            Some(_) = background.join_next() => Err(io::Error::other("the reload or the admin listener ended by itself")),
        };
        notify.say(&stopping(proxy.rules.load().drain.timeout));
        workers.close_doors().await;
        tokio::select! {
            () = drain(&proxy) => {}
            () = hurry => warn!(left = proxy.tunnels.all().len(), "told to stop at once"),
        }
        end_all(&proxy).await;
        workers.stop().await;
        background.shutdown().await;
        if BUILT_IN {
            // The last ones, if somebody takes them.
            let collector = proxy.rules.load().collector.clone();
            let _ = timeout(FAREWELL, Box::pin(export::send(&proxy.spans, collector))).await;
        }
        outcome
    }

    fn announce(&self) {
        let addresses: Vec<String> = self.listen_addresses().iter().map(SocketAddr::to_string).collect();
        let admin = self.admin_address().map_or_else(|| "off".to_owned(), |address| address.to_string());
        let rules = self.proxy.rules.load();
        info!(
            listen = addresses.join(","),
            admin,
            routes = rules.routes.len(),
            keys = rules.keys.len(),
            room = self.proxy.counts.room().most(),
            room_by = self.proxy.counts.room().bounded_by().word(),
            max_connections = self.proxy.counts.limits().max_connections,
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
    }
}

/// Asks the service manager for as long as the drain may take, whatever its own limit is, and the second that the last
/// closes get, and one to spare.
fn stopping(drain: Duration) -> String {
    let time = drain + Duration::from_secs(2);
    format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}\nSTATUS=draining", time.as_micros())
}

async fn drain(proxy: &Proxy) {
    let drain = proxy.rules.load().drain;
    info!(connections = proxy.counts.room().open(), timeout = ?drain.timeout, "draining");
    // The last one needs time to say its Close.
    let spread = drain.spread.min(drain.timeout.saturating_sub(Duration::from_secs(1)));
    let all_gone = async {
        proxy.tunnels.drain(spread).await;
        proxy.tunnels.empty().await;
        // Refusals that are being read. Whoever has asked for nothing yet is not waited for.
        let no_connections = async {
            while proxy.counts.room().open() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = timeout(Duration::from_millis(500), no_connections).await;
    };
    match timeout(drain.timeout, all_gone).await {
        Ok(()) => info!("drained"),
        Err(_) => warn!(left = proxy.tunnels.all().len(), "drain timeout"),
    }
}

/// Whoever is still there is closed now, and gets a line in the log like everybody.
async fn end_all(proxy: &Proxy) {
    for live in proxy.tunnels.all() {
        live.control.stop(Cause::Shutdown);
    }
    let _ = timeout(Duration::from_secs(1), proxy.tunnels.empty()).await;
}

/// A socket for each worker on one address: the kernel gives each connection to one of them, and wakes nobody else.
fn bind_shared(address: SocketAddr) -> io::Result<Vec<net::TcpListener>> {
    let cannot = |error: io::Error| cannot_bind(&error, "listen", address);
    // Alone first: sockets that share an address do so with those of any other process of the same user, too. It does not
    // listen, because it is closed again, and whoever came in between would be thrown out.
    let alone = bound(address, false).map_err(cannot)?;
    let address = alone.local_addr()?.as_socket().unwrap_or(address);
    drop(alone);
    let one = |_| bound(address, true).and_then(listening).map_err(cannot);
    let all = (0..worker::count()).map(one).collect::<io::Result<Vec<_>>>()?;
    all.iter().for_each(listener::wait_for_words);
    Ok(all)
}

fn bind(address: SocketAddr, what: &str) -> io::Result<net::TcpListener> {
    bound(address, false).and_then(listening).map_err(|error| cannot_bind(&error, what, address))
}

fn cannot_bind(error: &io::Error, what: &str, address: SocketAddr) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: cannot bind {address}: {error}"))
}

/// A socket on this address that does not listen yet.
fn bound(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listening(socket: Socket) -> io::Result<net::TcpListener> {
    socket.listen(listener::BACKLOG.into())?;
    Ok(socket.into())
}

/// Two futures: told to stop (SIGTERM or SIGINT), and told so again.
///
/// # Errors
/// When the system has no room for a signal handler.
pub fn signals() -> io::Result<(impl Future<Output = ()>, impl Future<Output = ()>)> {
    use tokio::signal::unix::{SignalKind, signal};
    let (once, twice) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let notify = (once.clone(), twice.clone());
    #[expect(clippy::disallowed_methods, reason = "waits for signals for as long as the process lives")]
    tokio::spawn(async move {
        for stage in [notify.0, notify.1] {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            stage.notify_one();
        }
    });
    Ok((async move { once.notified().await }, async move { twice.notified().await }))
}
