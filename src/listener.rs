//! An accept loop that never gives up. Every worker has one for each address, with a socket of its own.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};
use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::warn;

use crate::desk::Desks;
use crate::socket::keepalive;

/// Connections that wait to be accepted.
pub const BACKLOG: u16 = 4096;
/// Seconds after which the system hands over a connection that has not said anything. Less there is not.
const SILENCE: usize = 1;
/// Pauses between attempts to accept when descriptors or memory are out.
const PAUSE: Duration = Duration::from_millis(100);
/// Nobody needs to be told more often than this that it is so.
const SAY_AGAIN: Duration = Duration::from_secs(10);
/// Connections that are taken before those that are here have their turn.
const BATCH: usize = 32;

sockopt_impl!(
    /// Seconds for which a connection that has not said anything is not handed over (tcp(7), `TCP_DEFER_ACCEPT`).
    DeferAccept,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_DEFER_ACCEPT,
    usize
);

/// Has the system hand a connection over together with its first bytes: to be woken for one that has none yet was a quarter
/// of what a refusal cost. Those who stay silent come a second later, and are given their time from then on.
pub fn wait_for_words(listener: &TcpListener) {
    // Where it cannot be had, connections come as early as ever.
    let _ = setsockopt(listener, DeferAccept, &SILENCE);
}

/// Accepts until its task is dropped.
pub async fn accept(listener: Arc<TcpListener>, desks: &Desks) {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may change their descriptor; this one cannot"
    )]
    let listener = match AsyncFd::with_interest(listener, Interest::READABLE) {
        Ok(listener) => listener,
        Err(error) => return warn!(%error, "cannot listen"),
    };
    let (mut followed, mut said) = (Weak::new(), None::<Instant>);
    loop {
        if !desks.room().has_place() {
            desks.proxy().metrics.limit_reached(desks.room().bounded_by());
            desks.room().wait_for_place().await;
        }
        let Ok(mut ready) = listener.readable().await else { return };
        let rules = desks.proxy().rules.load();
        let (keepalive, is_new) = (rules.tcp_keepalive, !std::ptr::eq(followed.as_ptr(), Arc::as_ptr(&rules)));
        if is_new {
            followed = Arc::downgrade(&rules);
            ask_after(listener.get_ref(), keepalive);
        }
        drop(rules);
        for _ in 0..BATCH {
            if !desks.room().has_place() {
                break;
            }
            match accept_one(listener.get_ref()) {
                Ok((stream, address)) => {
                    // It inherits what was wanted when it connected.
                    if is_new {
                        ask_after(&stream, keepalive);
                    }
                    desks.welcome(stream, address);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    break;
                }
                Err(error) if is_about_one_connection(&error) => desks.proxy().metrics.accept_failed(),
                Err(error) => {
                    desks.proxy().metrics.accept_failed();
                    if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                        warn!(%error, "cannot accept connections, trying again");
                        said = Some(Instant::now());
                    }
                    sleep(PAUSE).await;
                    break;
                }
            }
        }
        yield_now().await;
    }
}

/// Accepts whoever the system has let in already: to close a listener throws them out without an answer. The drain finds
/// them with their handshakes under way.
pub fn accept_the_rest(listener: &TcpListener, desks: &Desks) {
    for _ in 0..=BACKLOG {
        if !desks.room().has_place() {
            return;
        }
        match accept_one(listener) {
            Ok((stream, address)) => desks.welcome(stream, address),
            Err(error) if is_about_one_connection(&error) => desks.proxy().metrics.accept_failed(),
            Err(_) => return,
        }
    }
}

/// Has TCP look after clients that vanish without a word.
fn ask_after(socket: &impl AsFd, idle: Option<Duration>) {
    let socket = socket2::SockRef::from(socket);
    let _ = match idle {
        Some(idle) => socket.set_tcp_keepalive(&keepalive(idle)),
        None => socket.set_keepalive(false),
    };
}

fn accept_one(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, address) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let address = address.and_then(|address| SocketAddr::try_from(address).ok());
    Ok((stream.into(), address.ok_or(io::ErrorKind::ConnectionAborted)?))
}

/// Errors of a connection that ended before it was accepted (accept(2)): the next one may be fine.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
