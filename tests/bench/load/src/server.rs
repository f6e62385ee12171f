//! The service behind the proxies. It answers any well-formed handshake; the path says what it does then: `/source?size=N`
//! sends frames, `/sink` takes whatever comes, everything else is sent back, message by message.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use crate::client::fault;
use crate::frame;

/// What one read of a stream may bring.
const BUFFER: usize = 256 * 1024;
const LONGEST_HEAD: usize = 64 * 1024;
const BACKLOG: i32 = 4096;

/// Serves until the process is told to stop.
pub(crate) fn run(listen: SocketAddr, threads: usize) -> io::Result<()> {
    if !listen.ip().is_loopback() {
        return Err(fault(format!("{listen} is not on loopback")));
    }
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    socket.listen(BACKLOG)?;
    let listener = std::net::TcpListener::from(socket);
    thread::scope(|scope| {
        let mut serving = Vec::new();
        for _ in 0..threads.max(1) {
            let listener = listener.try_clone()?;
            serving.push(scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                LocalSet::new().block_on(&runtime, accept(listener))
            }));
        }
        serving.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(fault("a thread broke"))))
    })
}

async fn accept(listener: std::net::TcpListener) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // An error here is the end of one connection, which its client sees and counts.
                tokio::task::spawn_local(async move { connection(stream).await.unwrap_or_default() });
            }
            // Such as no file descriptor being free: one may be in a moment.
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// What a request is answered with.
enum Reply {
    Switch {
        answer: String,
        path: String,
    },
    /// Not a handshake: a small page, and the connection is kept.
    Page,
}

async fn connection(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 4096];
    let mut have = 0;
    let path = loop {
        if let Some((reply, length)) = reply(&buffer[..have])? {
            buffer.copy_within(length..have, 0);
            have -= length;
            match reply {
                Reply::Switch { answer, path } => {
                    stream.write_all(answer.as_bytes()).await?;
                    break path;
                }
                Reply::Page => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").await?,
            }
            continue;
        }
        if have == LONGEST_HEAD {
            return Err(fault("the head is too long"));
        }
        if have == buffer.len() {
            buffer.resize(have * 2, 0);
        }
        match stream.read(&mut buffer[have..]).await? {
            0 => return Ok(()),
            count => have += count,
        }
    };
    match path.split_once('?').unwrap_or((&path, "")) {
        ("/source", query) => {
            let size = query.strip_prefix("size=").and_then(|size| size.parse().ok()).unwrap_or(65536);
            source(stream, size).await
        }
        ("/sink", _) => sink(&mut stream).await,
        _ => echo(stream, buffer, have).await,
    }
}

/// `None`: the head is not complete. With a reply comes the length of the head.
fn reply(bytes: &[u8]) -> io::Result<Option<(Reply, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let status = request.parse(bytes).map_err(|error| fault(format!("not a request: {error}")))?;
    let httparse::Status::Complete(length) = status else { return Ok(None) };
    let value = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| header.value)
    };
    let is_upgrade = value("upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"));
    let Some(key) = value("sec-websocket-key").filter(|_| is_upgrade) else { return Ok(Some((Reply::Page, length))) };
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        frame::accept(key)
    );
    Ok(Some((Reply::Switch { answer, path: request.path.unwrap_or("/").to_owned() }, length)))
}

async fn source(mut stream: TcpStream, size: usize) -> io::Result<()> {
    let frame = frame::frame(frame::BINARY, &vec![0x5a; size], None);
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        loop {
            writer.write_all(&frame).await?;
        }
    };
    let taking = async {
        let mut buffer = vec![0; BUFFER];
        while reader.read(&mut buffer).await? > 0 {}
        Ok(())
    };
    tokio::select! { end = sending => end, end = taking => end }
}

async fn sink(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Sends whole frames back as they come in, those of one read with one write.
async fn echo(mut stream: TcpStream, mut buffer: Vec<u8>, mut have: usize) -> io::Result<()> {
    let mut out = Vec::new();
    loop {
        let mut at = 0;
        let mut is_over = false;
        while let Some(header) = frame::header(&buffer[at..have]).filter(|_| !is_over) {
            let end = at.saturating_add(header.length).saturating_add(header.payload);
            if have < end {
                let wanted = end - at;
                if buffer.len() < wanted {
                    buffer.resize(wanted.next_power_of_two(), 0);
                }
                break;
            }
            answer(&mut out, &header, &buffer[at + header.length..end]);
            is_over = header.first & 0x0f == frame::CLOSE & 0x0f;
            at = end;
        }
        if !out.is_empty() {
            stream.write_all(&out).await?;
            out.clear();
        }
        if is_over {
            // The server ends the connection (RFC 6455 section 7.1.1).
            return Ok(());
        }
        buffer.copy_within(at..have, 0);
        have -= at;
        if have == buffer.len() {
            buffer.resize(have * 2, 0);
        }
        match stream.read(&mut buffer[have..]).await? {
            0 => return Ok(()),
            count => have += count,
        }
    }
}

/// The same frame without its mask; a Ping becomes a Pong.
fn answer(out: &mut Vec<u8>, header: &frame::Header, payload: &[u8]) {
    const PING: u8 = 9;
    const PONG: u8 = 10;
    let first = if header.first & 0x0f == PING { header.first & 0xf0 | PONG } else { header.first };
    frame::put_header(out, first, payload.len(), false);
    let at = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = header.mask {
        frame::unmask(&mut out[at..], mask);
    }
}
