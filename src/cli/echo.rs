//! The service behind `demo`: a WebSocket server that asks for no login and sends everything back (RFC 6455).
//!
//! It stands for what people put behind the proxy, so it shares no code with it. Payloads stream through a buffer of
//! fixed size: a message of any length needs no more memory than a short one.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::io::{BufReader, copy, sink};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const MAX_CONNECTIONS: usize = 1024;
const MAX_HEAD: u64 = 16 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other side may take to close after our Close. Closing first, with bytes unread, would reset the
/// connection and could take the Close frame with it.
const LINGER: Duration = Duration::from_secs(1);

/// Serves until it is dropped; its connections go with it.
pub(super) async fn serve(listener: TcpListener) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream));
                }
                // Such as no file descriptor being free: one may be in a moment.
                Err(_) => sleep(Duration::from_millis(100)).await,
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn connection(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let head = timeout(HEAD_TIMEOUT, read_head(&mut reader)).await??;
    if let Some(key) = websocket_key(&head) {
        writer.write_all(switching(&key).as_bytes()).await?;
        echo(&mut reader, &mut writer).await?;
    } else {
        writer.write_all(NOT_A_HANDSHAKE.as_bytes()).await?;
    }
    writer.shutdown().await?;
    timeout(LINGER, copy(&mut reader, &mut sink())).await??;
    Ok(())
}

async fn read_head<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut reader = reader.take(MAX_HEAD);
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

/// The client's key, when this is a WebSocket handshake. Not strict: the proxy in front is.
fn websocket_key(head: &[u8]) -> Option<String> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).ok()?.is_complete().then_some(())?;
    let value = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    let upgrade = value("upgrade")?.eq_ignore_ascii_case("websocket");
    let version = value("sec-websocket-version")? == "13";
    if request.method == Some("GET") && upgrade && version { value("sec-websocket-key").map(Into::into) } else { None }
}

/// No subprotocol is selected, whatever was offered, as most services do.
fn switching(key: &str) -> String {
    let accept = Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        STANDARD.encode(accept)
    )
}

const NOT_A_HANDSHAKE: &str = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\
    Sec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n";

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const PROTOCOL_ERROR: [u8; 4] = [0x80 | CLOSE, 2, 0x03, 0xEA]; // 1002

/// Sends every frame back until the client closes, breaks the protocol, or is gone.
async fn echo<R: AsyncBufRead + Unpin, W: AsyncWrite + Unpin>(reader: &mut R, writer: &mut W) -> io::Result<()> {
    let mut in_message = false;
    while let Some(frame) = Header::read(reader).await? {
        if !frame.is_valid(in_message) {
            return writer.write_all(&PROTOCOL_ERROR).await;
        }
        match frame.opcode {
            CLOSE => return send_back(reader, writer, &frame, CLOSE).await,
            PING => send_back(reader, writer, &frame, PONG).await?,
            PONG => send_back(reader, &mut sink(), &frame, PONG).await?,
            _ => {
                send_back(reader, writer, &frame, frame.opcode).await?;
                in_message = !frame.fin;
            }
        }
    }
    Ok(())
}

struct Header {
    fin: bool,
    reserved: u8,
    opcode: u8,
    masked: bool,
    length: u64,
    mask: [u8; 4],
}

impl Header {
    /// `None` when the stream ends between two frames.
    async fn read<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Option<Self>> {
        if reader.fill_buf().await?.is_empty() {
            return Ok(None);
        }
        let (first, second) = (reader.read_u8().await?, reader.read_u8().await?);
        let masked = second & 0x80 != 0;
        let length = match second & 0x7F {
            126 => u64::from(reader.read_u16().await?),
            127 => reader.read_u64().await?,
            length => u64::from(length),
        };
        let mut mask = [0; 4];
        if masked {
            reader.read_exact(&mut mask).await?;
        }
        Ok(Some(Self { fin: first & 0x80 != 0, reserved: first & 0x70, opcode: first & 0x0F, masked, length, mask }))
    }

    fn is_valid(&self, in_message: bool) -> bool {
        let fits = match self.opcode {
            CONTINUATION => in_message,
            TEXT | BINARY => !in_message,
            CLOSE => self.fin && self.length <= 125 && self.length != 1,
            PING | PONG => self.fin && self.length <= 125,
            _ => false,
        };
        fits && self.masked && self.reserved == 0 && self.length >> 63 == 0
    }

    fn put(&self, opcode: u8, out: &mut Vec<u8>) {
        out.push(u8::from(self.fin) << 7 | opcode);
        let bytes = self.length.to_be_bytes();
        match self.length {
            0..126 => out.push(bytes[7]),
            126..0x1_0000 => out.extend([126, bytes[6], bytes[7]]),
            _ => {
                out.push(127);
                out.extend(bytes);
            }
        }
    }
}

/// Sends one frame back under `opcode`, unmasked, in the pieces in which it arrives.
async fn send_back<R, W>(reader: &mut R, writer: &mut W, frame: &Header, opcode: u8) -> io::Result<()>
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut out = Vec::new();
    frame.put(opcode, &mut out);
    let mut mask = frame.mask.iter().cycle();
    let mut left = frame.length;
    while left > 0 {
        let arrived = reader.fill_buf().await?;
        if arrived.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = arrived.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        out.extend(arrived[..length].iter().zip(&mut mask).map(|(byte, mask)| byte ^ mask));
        reader.consume(length);
        left -= length as u64;
        writer.write_all(&out).await?;
        out.clear();
    }
    writer.write_all(&out).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame, masked, its payload given as it should arrive.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let header = Header {
            fin: first & 0x80 != 0,
            reserved: 0,
            opcode: first & 0x0F,
            masked: true,
            length: payload.len() as u64,
            mask: [1, 2, 3, 4],
        };
        let mut out = Vec::new();
        header.put(header.opcode, &mut out);
        out[0] = first;
        out[1] |= 0x80;
        out.extend(header.mask);
        out.extend(payload.iter().zip(header.mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    /// What comes back, when every read yields no more than `step` bytes.
    async fn answer(sent: &[u8], step: usize) -> Vec<u8> {
        let mut received = Vec::new();
        let mut reader = BufReader::with_capacity(step, sent);
        let _ = echo(&mut reader, &mut received).await;
        received
    }

    #[tokio::test]
    async fn frames_come_back_unmasked() {
        let long = vec![b'x'; 70_000];
        for length in [0, 1, 125, 126, 65_535, 65_536, 70_000] {
            let sent = masked(0x82, &long[..length]);
            let received = answer(&sent, 61).await;
            assert_eq!(received.len() + 4, sent.len());
            assert!(received.ends_with(&long[..length]));
        }
        assert_eq!(answer(&masked(0x81, b"hello"), 3).await, b"\x81\x05hello");
    }

    #[tokio::test]
    async fn fragments_stay_fragments_with_a_ping_between() {
        let sent = [masked(0x01, b"ab"), masked(0x89, b"?"), masked(0x8A, b"no"), masked(0x80, b"cd")].concat();
        assert_eq!(answer(&sent, 1).await, b"\x01\x02ab\x8a\x01?\x80\x02cd");
    }

    #[tokio::test]
    async fn close_is_answered_and_ends_it() {
        let sent = [masked(0x88, b"\x03\xe8bye"), masked(0x81, b"late")].concat();
        assert_eq!(answer(&sent, 7).await, b"\x88\x05\x03\xe8bye");
        assert_eq!(answer(&masked(0x88, b""), 7).await, b"\x88\x00");
    }

    #[tokio::test]
    async fn a_broken_frame_is_closed_with_1002() {
        let long = [b'x'; 126];
        let broken = [
            masked(0x80, b"nothing to continue"),
            masked(0x83, b"no such opcode"),
            masked(0xC1, b"no extension was agreed upon"),
            masked(0x09, b"a ping in pieces"),
            masked(0x89, &long),
            masked(0x88, b"x"),
            b"\x81\x05hello".to_vec(),
            b"\x82\xff\x80\0\0\0\0\0\0\0\x01\x02\x03\x04".to_vec(),
        ];
        for sent in broken {
            assert_eq!(answer(&sent, 64).await, PROTOCOL_ERROR, "{sent:?}");
        }
        let twice = [masked(0x01, b"a"), masked(0x81, b"b")].concat();
        assert_eq!(answer(&twice, 64).await, [b"\x01\x01a".as_slice(), &PROTOCOL_ERROR].concat());
    }

    #[tokio::test]
    async fn a_frame_that_never_ends_needs_no_memory() {
        let (mut client, server) = tokio::io::duplex(1024);
        let (reader, mut writer) = tokio::io::split(server);
        let mut reader = BufReader::new(reader);
        let dialogue = async move {
            client.write_all(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0first").await.unwrap();
            let mut received = [0; 15];
            client.read_exact(&mut received).await.unwrap();
            assert_eq!(received, *b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xfffirst", "before the frame is complete");
        };
        let (ended, ()) = tokio::join!(echo(&mut reader, &mut writer), dialogue);
        assert!(ended.is_err());
    }

    #[test]
    fn handshakes() {
        let head = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let key = websocket_key(head.as_bytes()).expect("a handshake");
        assert!(switching(&key).contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        for (part, other) in [("GET", "POST"), ("Upgrade: W", "X: W"), ("13", "12"), ("-Key", "-Kex"), ("HTTP", "FTP")]
        {
            assert_eq!(websocket_key(head.replace(part, other).as_bytes()), None, "{other}");
        }
    }
}
