//! The life of a connection: its request's head, the answer, and the tunnel if the answer was 101.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::Method;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tracing::debug;
use zeroize::Zeroize as _;

use crate::auth::first_message::FirstMessage;
use crate::cap::Cap;
use crate::denial::{Denial, Reason};
use crate::end::{Cause, End};
use crate::first_message::{self, First, Intake};
use crate::frame::Follower;
use crate::head::{self, Fault};
use crate::knock::Asked;
use crate::limit::Arrived;
use crate::log::{self, Entry};
use crate::peer::Peer;
use crate::proxy::{Opened, Proxy, Reply};
use crate::relay::Relay;
use crate::socket::Socket;
use crate::spans::BUILT_IN;
use crate::tunnels::Seat;
use crate::upstream::Stream;

/// How long a client may take to read an answer of ours.
const ANSWER: Duration = Duration::from_secs(10);
/// What a refused client may still send while it reads the refusal, and for how long: closing a socket with unread bytes
/// would take the answer with it.
const LINGER_BYTES: usize = 256 * 1024;
const LINGER: Duration = Duration::from_millis(500);
/// How long a client that was told no in a Close frame has to answer it.
const FAREWELL: Duration = Duration::from_secs(2);
/// What the first look at a connection takes. Few heads are larger, and they are read on.
const FIRST_LOOK: usize = 4 * 1024;

thread_local! {
    /// Where first looks go, so that each head gets a buffer of its own length.
    static LOOK: RefCell<Box<[u8]>> = RefCell::new(vec![0; FIRST_LOOK].into_boxed_slice());
}

/// A connection that became a tunnel.
pub struct Tunnel {
    relay: Relay<Socket, Stream>,
    seat: Seat,
}

impl Tunnel {
    fn poll(&mut self, cx: &mut Context<'_>, proxy: &Proxy) -> Poll<()> {
        let live = self.seat.live();
        let end = ready!(self.relay.poll(cx, &live.control));
        proxy.metrics.closed(live, end.cause);
        log::closed(live, end);
        Poll::Ready(())
    }
}

/// A connection from its first byte to its last. What the handshake needs is on the heap, so that it is gone when the
/// tunnel stands. Written out, because an `async` block would keep a place for each part of its life.
#[expect(clippy::large_enum_variant, reason = "nearly all of its life is the large one")]
pub enum Life {
    Arriving(Pin<Box<dyn Future<Output = Option<Tunnel>> + Send>>),
    Relaying(Tunnel),
}

impl Life {
    pub fn begin(stream: TcpStream, address: SocketAddr, proxy: &Arc<Proxy>) -> Self {
        Self::Arriving(Box::pin(arrive(stream, address, proxy.clone())))
    }

    pub fn poll(&mut self, cx: &mut Context<'_>, proxy: &Proxy) -> Poll<()> {
        loop {
            match self {
                Self::Arriving(arriving) => match ready!(arriving.as_mut().poll(cx)) {
                    Some(tunnel) => *self = Self::Relaying(tunnel),
                    None => return Poll::Ready(()),
                },
                Self::Relaying(tunnel) => return tunnel.poll(cx, proxy),
            }
        }
    }
}

/// From an accepted socket to a tunnel, or to a refusal that was read.
async fn arrive(stream: TcpStream, address: SocketAddr, proxy: Arc<Proxy>) -> Option<Tunnel> {
    let arrived = BUILT_IN.then(Instant::now);
    let peer = Peer::new(address);
    let from = peer.address.ip();
    let mut client = Socket::new(stream, from);
    let (head_timeout, keepalive, is_proxy) = {
        let rules = proxy.rules.load();
        (rules.head_timeout, rules.tcp_keepalive, rules.trusted_proxies.trust(from))
    };
    // Held until there is a tunnel, or nothing. Of a trusted proxy it is known later for whom it speaks.
    let mut place = match (!is_proxy).then(|| proxy.counts.arrive(from)) {
        None => None,
        Some(Arrived::Welcome(place)) => Some(place),
        Some(Arrived::TooMany(_place)) => {
            // Before it has asked for anything: what comes in all the same is not read by anybody.
            let answer = proxy.deny(&Entry::without_request(from), &Denial::full(Cap::PendingPerAddress));
            refuse(client, answer.as_bytes(), true).await;
            return None;
        }
        Some(Arrived::Flood) => {
            proxy.metrics.limit_reached(Cap::PendingPerAddress);
            return None;
        }
    };
    let (parts, early) = match read_head(&mut client, head_timeout).await {
        Ok(request) => request,
        Err(Fault::Gone) => {
            debug!(caller = %from, "connection without a request");
            return None;
        }
        Err(Fault::Denied(denial)) => {
            let answer = proxy.deny(&Entry::without_request(from), &denial);
            refuse(client, answer.as_bytes(), true).await;
            return None;
        }
    };
    let is_head = parts.method == Method::HEAD;
    let is_more_to_come = !early.is_empty() || has_body(&parts.headers);
    let mut has_waited = false;
    let hung_up = async {
        // Looked at only where the reply is not there at once.
        has_waited = true;
        client.hung_up().await;
    };
    let reply = tokio::select! {
        biased;
        reply = proxy.handle(peer, parts, arrived, &mut place) => reply,
        () = hung_up, if early.is_empty() => {
            debug!(caller = %from, "the client hung up during the handshake");
            return None;
        }
    };
    match reply {
        Reply::Opened(answer, opened) => begin(client, early, &answer, opened, &proxy).await,
        Reply::Asked(answer, asked) => Box::pin(hear(client, early, &answer, *asked, &proxy)).await,
        Reply::Declined(answer, _place) => {
            turn_away(client, &early, &answer).await;
            None
        }
        Reply::Forward(entry, forward) => {
            // It counts as a tunnel does.
            drop(place);
            let ended = Box::pin(forward.run(&entry, client, early, keepalive, &proxy.metrics)).await;
            if let Some(denial) = ended.refusal {
                let answer = proxy.deny(&entry, &denial);
                refuse(ended.client, if is_head { answer.without_body() } else { answer.as_bytes() }, true).await;
            } else if ended.is_more_to_come {
                linger(ended.client).await;
            }
            None
        }
        Reply::Closed(answer) => {
            let answer = if is_head { answer.without_body() } else { answer.as_bytes() };
            // While the service was asked, more may have come.
            refuse(client, answer, is_more_to_come || has_waited).await;
            None
        }
    }
}

async fn read_head(client: &mut Socket, limit: Duration) -> Result<(http::request::Parts, Vec<u8>), Fault> {
    let first = LOOK.with_borrow_mut(|look| match client.read_now(look) {
        None => Ok(Vec::new()),
        Some(Ok(count)) if count > 0 => {
            let first = look[..count].to_vec();
            look[..count].zeroize(); // it may hold a credential, and waits for the next connection
            Ok(first)
        }
        Some(_) => Err(Fault::Gone),
    })?;
    head::read(first, client, limit).await?.parse().map_err(Fault::Denied)
}

/// Whether the client has announced bytes that nobody is going to read.
fn has_body(headers: &http::HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
}

/// Says yes. From here on there is a tunnel, or a line in the log that says why there is none.
async fn begin(mut client: Socket, early: Vec<u8>, answer: &[u8], opened: Opened, proxy: &Proxy) -> Option<Tunnel> {
    let why = match timeout(ANSWER, client.write_all(answer)).await {
        Ok(Ok(())) => {
            let mut opened = opened;
            opened.start.from_client = early;
            return Some(relay(client, opened, proxy));
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the client did not read the answer".to_owned(),
    };
    let live = opened.seat.live();
    log::never_began(live, &why);
    let end = End::new(Cause::ClientLost, None);
    log::closed(live, end);
    proxy.metrics.closed(live, end.cause);
    None
}

/// Says no. A socket that is closed with nothing unread in it delivers what was written; where more is to come, it is
/// read for a moment.
async fn refuse(mut client: Socket, answer: &[u8], is_more_to_come: bool) {
    let written = timeout(ANSWER, client.write_last(answer)).await;
    if is_more_to_come && matches!(written, Ok(Ok(()))) {
        linger(client).await;
    }
}

/// Says yes to the handshake, and waits for the message that says who it is. Only who is good by it gets a tunnel.
async fn hear(mut client: Socket, early: Vec<u8>, answer: &[u8], asked: Asked, proxy: &Proxy) -> Option<Tunnel> {
    let wanted = asked.wanted()?;
    let message = first_message(&mut client, &early, answer, wanted);
    let heard = tokio::select! {
        biased;
        heard = timeout(wanted.timeout, message) => heard.unwrap_or(Err(Unheard::Late)),
        () = proxy.tunnels.drain_begun() => Err(Unheard::Drain),
    };
    let close = match heard {
        Ok(first) => {
            let is_more_to_come = !first.rest.is_empty();
            let opened = tokio::select! {
                biased;
                opened = proxy.hear(asked, first) => opened,
                () = client.hung_up(), if !is_more_to_come => {
                    debug!("the client hung up after its first message");
                    return None;
                }
            };
            match opened {
                Ok(opened) => return Some(relay(client, opened, proxy)),
                Err(close) => close,
            }
        }
        Err(Unheard::Gone) => {
            debug!("the client went before its first message");
            return None;
        }
        Err(Unheard::Late) => {
            let denial = Denial::new(Reason::RequestTimeout, "the first message did not arrive in time");
            proxy.not_heard(&asked, &denial)
        }
        Err(Unheard::Drain) => proxy.not_heard(&asked, &Denial::new(Reason::Draining, "this proxy is about to stop")),
        Err(Unheard::Fault(fault)) => {
            let denial = Denial::new(Reason::BadFirstMessage, fault.says()).closing_with(fault.close_code());
            proxy.not_heard(&asked, &denial)
        }
    };
    turn_away(client, &[], &close).await;
    None
}

/// Why there is no first message.
enum Unheard {
    Gone,
    Late,
    Drain,
    Fault(first_message::Fault),
}

async fn first_message(
    client: &mut Socket,
    early: &[u8],
    answer: &[u8],
    wanted: &FirstMessage,
) -> Result<First, Unheard> {
    client.write_all(answer).await.map_err(|_| Unheard::Gone)?;
    let mut intake = Intake::new(wanted.max_bytes);
    let mut taken = intake.take(early);
    let mut buffer = vec![0; 1024];
    loop {
        let first = taken.map_err(Unheard::Fault)?;
        let pongs = intake.take_answers();
        if !pongs.is_empty() {
            client.write_all(&pongs).await.map_err(|_| Unheard::Gone)?;
        }
        if let Some(first) = first {
            return Ok(first);
        }
        match client.read(&mut buffer).await {
            Ok(0) | Err(_) => return Err(Unheard::Gone),
            Ok(count) => taken = intake.take(&buffer[..count]),
        }
    }
}

fn relay(client: Socket, opened: Opened, proxy: &Proxy) -> Tunnel {
    if let (Some(idle), Stream::Tcp(upstream)) = (proxy.rules.load().tcp_keepalive, &opened.upstream) {
        upstream.ask_after(idle);
    }
    let Opened { seat, upstream, start, bounds } = opened;
    Tunnel { relay: Relay::new(client, upstream, &start, &bounds), seat }
}

/// Says no in a Close frame, and waits for the client's own, so that its page gets to read the code.
async fn turn_away(mut client: Socket, early: &[u8], answer: &[u8]) {
    if !matches!(timeout(ANSWER, client.write_all(answer)).await, Ok(Ok(()))) {
        return;
    }
    let mut follower = Follower::from_client(false);
    follower.follow(early);
    let _ = timeout(FAREWELL, async {
        let mut left = LINGER_BYTES;
        let mut buffer = vec![0; 1024];
        while left > 0 && !follower.saw_close() && !follower.is_lost() {
            match client.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    follower.follow(&buffer[..count]);
                    left = left.saturating_sub(count);
                }
            }
        }
    })
    .await;
}

/// Closes our side and reads on for a moment.
async fn linger(mut client: Socket) {
    if client.shutdown().await.is_err() {
        return;
    }
    let _ = timeout(LINGER, async {
        let mut left = LINGER_BYTES;
        // Not in the future itself, which all connections have a place for.
        let mut buffer = vec![0; 1024];
        while left > 0 {
            match client.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
    })
    .await;
}
