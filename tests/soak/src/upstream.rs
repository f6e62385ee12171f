//! The services behind the proxy: they answer handshakes, talk, and are killed and started again.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::clock;
use crate::stream::{Direction, Rng};
use crate::talk::talk;
use crate::world::{Tunnel, Upstream, World, lock};

/// Addresses that are free now, and that no connection of anybody takes while whoever has one is down: those have ports
/// from 32768 on.
pub(crate) fn reserve(rng: &mut Rng, count: usize) -> io::Result<Vec<SocketAddr>> {
    let ports = (0..100).map(|_| rng.between(15_000, 32_000) as u16);
    let free = ports.filter_map(|port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    // All are held until the last is found, so that each is another.
    let held: Vec<_> = free.take(count).collect();
    if held.len() < count {
        return Err(io::Error::other("no port is free"));
    }
    held.iter().map(std::net::TcpListener::local_addr).collect()
}

/// A service that does not run yet.
pub(crate) fn upstream(address: SocketAddr) -> Upstream {
    Upstream { address, life: watch::Sender::new(0), is_up: false.into(), last_up: 0.into() }
}

/// On a busy machine the life before may not have noticed yet that it is over, and still have the port.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let mut tries = 0;
    loop {
        tries += 1;
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(4096)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < 100 => clock::sleep(50).await,
            done => return done,
        }
    }
}

/// One life: until the number of the life is another.
pub(crate) async fn live(world: Arc<World>, index: usize) -> io::Result<()> {
    let upstream = &world.upstreams[index];
    let listener = listen(upstream.address).await?;
    let mut life = upstream.life.subscribe();
    life.mark_unchanged();
    upstream.last_up.store(clock::now(), SeqCst);
    upstream.is_up.store(true, SeqCst);
    loop {
        tokio::select! {
            _ = life.changed() => return Ok(()),
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let (world, mut life) = (world.clone(), upstream.life.subscribe());
                tokio::spawn(async move {
                    let killed = async { drop(life.changed().await) };
                    connection(&world, stream, killed).await;
                });
            }
        }
    }
}

/// Kills a service and everything that it has open, and starts it again after a while.
pub(crate) async fn restart(world: &Arc<World>, index: usize, down: u64) -> io::Result<()> {
    let upstream = &world.upstreams[index];
    upstream.is_up.store(false, SeqCst);
    for tunnel in lock(&world.tunnels).values().filter(|tunnel| tunnel.upstream == index) {
        tunnel.killed.comes();
    }
    upstream.life.send_modify(|life| *life += 1);
    clock::sleep(down).await;
    let (world, listening) = (world.clone(), upstream.life.subscribe());
    drop(listening);
    tokio::spawn(async move {
        if let Err(error) = live(world.clone(), index).await {
            world.fault(format!("upstream {index} does not start again: {error}"));
        }
    });
    Ok(())
}

async fn connection(world: &World, mut stream: TcpStream, killed: impl Future<Output = ()>) {
    tokio::pin!(killed);
    let handshake = tokio::select! {
        () = &mut killed => return,
        handshake = accept(world, &mut stream) => handshake,
    };
    // A handshake that breaks off is that of a client that was refused meanwhile.
    let Ok(Some((tunnel, early))) = handshake else { return };
    let reports = tunnel.clone();
    let side = talk(world, &tunnel, stream, &early, Direction::Down, async {
        killed.await;
        reports.killed.comes();
    });
    let side = side.await;
    *lock(&tunnel.server) = Some(side);
}

async fn accept(world: &World, stream: &mut TcpStream) -> io::Result<Option<(Arc<Tunnel>, Vec<u8>)>> {
    stream.set_nodelay(true)?;
    let Some((head, early)) = read_head(stream).await? else { return Ok(None) };
    let number = field(&head, "x-request-id").and_then(|id| id.strip_prefix('t')?.parse().ok());
    let tunnel = number.and_then(|number: u64| lock(&world.tunnels).get(&number).cloned());
    let (Some(tunnel), Some(key)) = (tunnel, field(&head, "sec-websocket-key")) else {
        world.fault(format!("an upstream is asked what nobody asks: {head:?}"));
        return Ok(None);
    };
    if field(&head, "x-auth-key-id") != Some(&*tunnel.key.name) || head.contains(crate::proxy::SECRET) {
        world.fault(format!("the upstream of t{} sees another key: {head:?}", tunnel.number));
    }
    let offered = field(&head, "sec-websocket-extensions");
    if offered != tunnel.deflate.offer() {
        world
            .fault(format!("the upstream of t{} does not see the offer of its client, but {offered:?}", tunnel.number));
    }
    let agreed = tunnel.deflate.answer();
    let extensions = agreed.map(|agreed| format!("Sec-WebSocket-Extensions: {agreed}\r\n")).unwrap_or_default();
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{extensions}\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        STANDARD.encode(hash.finalize())
    );
    stream.write_all(answer.as_bytes()).await?;
    Ok(Some((tunnel, early)))
}

/// The value of this field, whose name is in small letters or not.
pub(crate) fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A head, and what came with it. `None`: the connection ended before.
pub(crate) async fn read_head(stream: &mut TcpStream) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut have = Vec::with_capacity(1024);
    loop {
        if have.len() > 16 * 1024 {
            return Err(io::Error::other("the head is too long"));
        }
        if stream.read_buf(&mut have).await? == 0 {
            return Ok(None);
        }
        if let Some(end) = have.windows(4).position(|window| window == b"\r\n\r\n") {
            let early = have.split_off(end + 4);
            return Ok(Some((String::from_utf8_lossy(&have).into_owned(), early)));
        }
    }
}
