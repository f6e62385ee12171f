//! The clients: each slot opens one tunnel after the other, and has each judged when it is over.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

use crate::clock;
use crate::deflate::Deflate;
use crate::judge::{Journal, judge};
use crate::proxy::secret;
use crate::stream::{Direction, Rng};
use crate::talk::talk;
use crate::upstream::{field, read_head};
use crate::world::{Plan, ROUTES, Tunnel, World, lock};

/// For a handshake that is answered, and for the other end and the log to say their part.
const PATIENCE: u64 = 60_000;
/// Until a client opens its next tunnel, at most, in milliseconds.
const PAUSE: u64 = 500;
/// The same when all of them have waited for a new process of the proxy: no more of a rush than the first wave.
const RETURN: u64 = 4000;
/// What a change of the rules, or the end of a service, may still show in after it, in milliseconds.
const AFTERMATH: u64 = 15_000;
static NEXT: AtomicU64 = AtomicU64::new(1);

/// One after the other until the end.
pub(crate) async fn slot(world: Arc<World>, journal: Arc<Journal>, mut rng: Rng, begin: u64) {
    clock::sleep(begin).await;
    while !world.is_finishing() {
        let tunnel = Arc::new(draw(&world, &mut rng));
        lock(&world.tunnels).insert(tunnel.number, tunnel.clone());
        let found = one(&world, &journal, &tunnel).await;
        lock(&world.tunnels).remove(&tunnel.number);
        journal.forget(tunnel.number);
        let mut finish = world.finish.subscribe();
        let mut life = world.life.subscribe();
        let pause = async {
            let most = if found == Found::NobodyThere {
                let _ = life.wait_for(|life| !Arc::ptr_eq(life, &tunnel.life)).await;
                RETURN
            } else {
                PAUSE
            };
            clock::sleep(rng.between(1, most)).await;
        };
        tokio::select! {
            () = pause => {}
            _ = finish.wait_for(|finish| *finish) => {}
        }
    }
}

fn draw(world: &World, rng: &mut Rng) -> Tunnel {
    let keys = lock(&world.keys);
    let key = keys[rng.below(keys.len() as u64) as usize].clone();
    drop(keys);
    let plan = match rng.below(100) {
        0..40 => Plan::ClientCloses,
        40..80 => Plan::UpstreamCloses,
        80..90 => Plan::ClientGoes(rng.chance(50)),
        _ => Plan::UpstreamGoes(rng.chance(50)),
    };
    let life = match rng.below(100) {
        0..20 => rng.between(0, 2000),
        20..70 => rng.between(2000, 60_000),
        _ => rng.between(60_000, 600_000),
    };
    Tunnel {
        number: NEXT.fetch_add(1, SeqCst),
        seed: rng.next(),
        route: match rng.below(100) {
            0..45 => 0,
            45..80 => 1,
            80..85 => 2,
            _ => 3,
        },
        upstream: rng.below(world.upstreams.len() as u64) as usize,
        key,
        guest: lock(&world.guest).clone(),
        life: world.life.borrow().clone(),
        deflate: match rng.below(100) {
            0..50 => Deflate::Off,
            50..75 => Deflate::Alone,
            _ => Deflate::Linked,
        },
        plan,
        plan_at: clock::now() + life,
        begin: clock::now(),
        planned: Default::default(),
        killed: Default::default(),
        client: Default::default(),
        server: Default::default(),
    }
}

/// What a client finds behind the address.
#[derive(PartialEq, Eq)]
enum Found {
    Proxy,
    /// It has been told to stop, and the next one does not listen yet.
    NobodyThere,
}

async fn one(world: &World, journal: &Journal, tunnel: &Arc<Tunnel>) -> Found {
    let opened = clock::within(PATIENCE, open(world, tunnel)).await;
    match opened {
        Some(Ok(Ok((stream, early)))) => whole(world, journal, tunnel, stream, &early).await,
        Some(Ok(Err(status))) => {
            *lock(&world.total.refused).entry(status.to_string()).or_default() += 1;
            if !may_be_refused(world, tunnel, status) {
                world.fault(format!("t{} is refused with {status}, and should not be", tunnel.number));
            }
            if status == 503 {
                return Found::NobodyThere;
            }
        }
        Some(Err(_)) if tunnel.life.told_to_stop.has_come() => {
            *lock(&world.total.refused).entry("nobody there".to_owned()).or_default() += 1;
            return Found::NobodyThere;
        }
        Some(Err(error)) => world.fault(format!("t{}: the handshake broke: {error}", tunnel.number)),
        None => world.fault(format!("t{}: no answer to the handshake", tunnel.number)),
    }
    Found::Proxy
}

/// An open tunnel until it is over, and judged.
async fn whole(world: &World, journal: &Journal, tunnel: &Arc<Tunnel>, stream: TcpStream, early: &[u8]) {
    let total = &world.total;
    total.opened.fetch_add(1, SeqCst);
    total.alone.fetch_add(u64::from(tunnel.deflate == Deflate::Alone), SeqCst);
    total.linked.fetch_add(u64::from(tunnel.deflate == Deflate::Linked), SeqCst);
    total.peak.fetch_max(total.now.fetch_add(1, SeqCst) + 1, SeqCst);
    let side = talk(world, tunnel, stream, early, Direction::Up, std::future::pending()).await;
    *lock(&tunnel.client) = Some(side);
    total.now.fetch_sub(1, SeqCst);
    let told = async {
        while lock(&tunnel.server).is_none() || !journal.knows(tunnel.number) {
            clock::sleep(50).await;
        }
    };
    if clock::within(PATIENCE, told).await.is_none() {
        let (server, line) = (lock(&tunnel.server).is_some(), journal.knows(tunnel.number));
        return world.fault(format!("t{}: no end: upstream {server}, log {line}", tunnel.number));
    }
    judge(world, journal, tunnel);
}

/// The open connection with what came behind the answer, or the status of a refusal.
async fn open(world: &World, tunnel: &Tunnel) -> io::Result<Result<(TcpStream, Vec<u8>), u16>> {
    let socket = TcpSocket::new_v4()?;
    // From many addresses: the ports of one would run out.
    let source = Ipv4Addr::new(127, 0, 1, 1 + (tunnel.number % 250) as u8);
    socket.bind(SocketAddr::new(source.into(), 0))?;
    let mut stream = socket.connect(world.proxy).await?;
    stream.set_nodelay(true)?;
    let offer = tunnel.deflate.offer();
    let extensions = offer.map(|offer| format!("Sec-WebSocket-Extensions: {offer}\r\n")).unwrap_or_default();
    let request = format!(
        "GET /{}/{} HTTP/1.1\r\nHost: soak.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Request-Id: t{}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Api-Key: {}\r\n{extensions}\r\n",
        ROUTES[tunnel.route],
        tunnel.upstream,
        tunnel.number,
        secret(&tunnel.key.name),
    );
    stream.write_all(request.as_bytes()).await?;
    let Some((head, early)) = read_head(&mut stream).await? else { return Err(io::Error::other("no answer")) };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    if status != 101 {
        return Ok(Err(status));
    }
    let agreed = field(&head, "sec-websocket-extensions");
    if !head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") || agreed != tunnel.deflate.answer() {
        return Err(io::Error::other(format!("another answer than the upstream gave: {head:?}")));
    }
    Ok(Ok((stream, early)))
}

fn may_be_refused(world: &World, tunnel: &Tunnel, status: u16) -> bool {
    let upstream = &world.upstreams[tunnel.upstream];
    match status {
        // A new key, which is not in force yet.
        401 => {
            tunnel.key.revoked.begun.has_come() || tunnel.key.in_force.when().is_none_or(|when| when >= tunnel.begin)
        }
        403 => tunnel.key.narrowed.begun.has_come(),
        // Removed before, or there again but not yet in force.
        404 => tunnel.route == 3,
        503 => tunnel.life.told_to_stop.has_come(),
        502 => !upstream.is_up.load(SeqCst) || upstream.last_up.load(SeqCst) + AFTERMATH >= tunnel.begin,
        _ => false,
    }
}
