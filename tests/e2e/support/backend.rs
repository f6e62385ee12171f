//! The protected service: a real socket that the test drives by hand or by a script. Its panics fail the test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use tokio_tungstenite::tungstenite::WebSocket;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::head::Head;
use super::wait::DEADLINE;
use super::wire::{Stream, Wire};

/// What the upstream does with a connection whose head was read.
type Script = Arc<dyn Fn(Conn) + Send + Sync>;

pub struct Backend {
    place: Place,
    shared: Arc<Shared>,
    by_hand: Mutex<mpsc::Receiver<Conn>>,
}

#[derive(Clone)]
enum Place {
    Tcp(std::net::SocketAddr),
    Unix(PathBuf),
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicUsize,
    heads: Mutex<Vec<Head>>,
    panics: Mutex<Vec<String>>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> std::io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

impl Backend {
    /// Every connection waits for [`Backend::next`].
    pub fn manual() -> Self {
        let (sender, receiver) = mpsc::channel();
        let sender = Mutex::new(sender);
        // A test that has ended takes nothing any more.
        let script = move |conn| drop(sender.lock().unwrap().send(conn));
        Self::tcp(Arc::new(script), receiver)
    }

    /// Every connection runs this, after its head was read.
    pub fn serve(script: impl Fn(Conn) + Send + Sync + 'static) -> Self {
        Self::tcp(Arc::new(script), mpsc::channel().1)
    }

    /// Accepts, then sends back every byte until the end.
    pub fn echo() -> Self {
        Self::serve(|mut conn| {
            conn.accept();
            conn.echo();
        })
    }

    /// Accepts, then sends back every message, as a foreign implementation understands it.
    pub fn echo_messages() -> Self {
        Self::serve(|mut conn| {
            conn.accept();
            conn.echo_messages();
        })
    }

    /// Like [`Backend::echo`], where another one was.
    pub fn echo_at(address: &str) -> Self {
        let script = |mut conn: Conn| {
            conn.accept();
            conn.echo();
        };
        let listener = super::wait::eventually_some("the port is free", || TcpListener::bind(address).ok());
        let place = Place::Tcp(listener.local_addr().unwrap());
        Self::start(Listener::Tcp(listener), place, Arc::new(script), mpsc::channel().1)
    }

    /// Sends these bytes instead of a 101, and closes.
    pub fn answers(bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref().to_vec();
        Self::serve(move |mut conn| {
            let _ = conn.try_send(&bytes);
            conn.linger();
        })
    }

    /// On a Unix socket, by hand.
    pub fn unix(path: &Path) -> Self {
        let (sender, receiver) = mpsc::channel();
        let sender = Mutex::new(sender);
        let script: Script = Arc::new(move |conn| drop(sender.lock().unwrap().send(conn)));
        let listener = UnixListener::bind(path).unwrap();
        Self::start(Listener::Unix(listener), Place::Unix(path.to_owned()), script, receiver)
    }

    fn tcp(script: Script, receiver: mpsc::Receiver<Conn>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Place::Tcp(listener.local_addr().unwrap());
        Self::start(Listener::Tcp(listener), place, script, receiver)
    }

    fn start(listener: Listener, place: Place, script: Script, receiver: mpsc::Receiver<Conn>) -> Self {
        let shared = Arc::new(Shared::default());
        let (all, stop) = (shared.clone(), shared.clone());
        thread::spawn(move || {
            while let Ok(stream) = listener.accept() {
                if stop.stop.load(Ordering::SeqCst) {
                    break;
                }
                all.accepted.fetch_add(1, Ordering::SeqCst);
                let (all, script) = (all.clone(), script.clone());
                thread::spawn(move || all.run(stream, &script));
            }
        });
        Self { place, shared, by_hand: Mutex::new(receiver) }
    }

    /// As it stands in the configuration.
    pub fn url(&self) -> String {
        match &self.place {
            Place::Tcp(address) => format!("ws://{address}"),
            Place::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    pub fn address(&self) -> String {
        match &self.place {
            Place::Tcp(address) => address.to_string(),
            Place::Unix(path) => path.display().to_string(),
        }
    }

    /// The next connection, its head read.
    #[track_caller]
    pub fn next(&self) -> Conn {
        self.by_hand.lock().unwrap().recv_timeout(DEADLINE).expect("no connection reached the upstream")
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// The head of the latest request.
    #[track_caller]
    pub fn last_head(&self) -> Head {
        self.shared.heads.lock().unwrap().last().cloned().expect("no request reached the upstream")
    }

    pub fn heads(&self) -> Vec<Head> {
        self.shared.heads.lock().unwrap().clone()
    }
}

impl Shared {
    fn run(&self, stream: Stream, script: &Script) {
        let run = || {
            let mut wire = Wire::new(stream);
            let raw = wire.read_head_bytes();
            if raw.is_empty() {
                return;
            }
            let head = Head::parse(&raw);
            self.heads.lock().unwrap().push(head.clone());
            script(Conn { wire, head });
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            self.panics.lock().unwrap().push(text.unwrap_or_default());
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        match &self.place {
            Place::Tcp(address) => drop(TcpStream::connect(address)),
            Place::Unix(path) => drop(UnixStream::connect(path)),
        }
        let panics = self.shared.panics.lock().unwrap();
        if !thread::panicking() {
            assert!(panics.is_empty(), "the upstream panicked: {panics:?}");
        }
    }
}

/// One connection at the upstream.
#[derive(Debug)]
pub struct Conn {
    wire: Wire,
    pub head: Head,
}

impl Deref for Conn {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.wire
    }
}

impl DerefMut for Conn {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.wire
    }
}

impl Conn {
    /// A right 101, with these lines besides and these bytes glued to it.
    pub fn accept_bytes(&self, lines: &str, glued: &[u8]) -> Vec<u8> {
        let key = self.head.get("Sec-WebSocket-Key").expect("the upstream got no Sec-WebSocket-Key");
        let accept = derive_accept_key(key.as_bytes());
        let mut bytes = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{lines}\r\n"
        )
        .into_bytes();
        bytes.extend(glued);
        bytes
    }

    pub fn accept(&mut self) {
        self.accept_with("");
    }

    /// Accepts, with lines such as `"Sec-WebSocket-Protocol: chat\r\n"`.
    pub fn accept_with(&mut self, lines: &str) {
        let bytes = self.accept_bytes(lines, b"");
        self.send(bytes);
    }

    /// Sends back every byte until the other side ends, then ends too.
    pub fn echo(&mut self) {
        while let Ok(bytes) = self.read_some() {
            if bytes.is_empty() || self.try_send(&bytes).is_err() {
                break;
            }
        }
    }

    /// Sends back every message until the conversation is closed.
    pub fn echo_messages(self) {
        let mut socket: WebSocket<Stream> = self.wire.into_websocket(Role::Server);
        while let Ok(message) = socket.read() {
            let is_data = message.is_text() || message.is_binary();
            if is_data && socket.send(message).is_err() {
                break;
            }
        }
    }

    /// Closes its own direction and waits for the other to end, so that nothing it sent is lost.
    pub fn linger(&mut self) {
        self.shutdown_write();
        let mut rest = Vec::new();
        let _ = self.handle().read_to_end(&mut rest);
    }

    pub fn close(self) {}

    pub fn reset(self) {
        self.wire.reset();
    }

    /// Sends, whatever becomes of it, until told to stop or nobody listens.
    pub fn flood(&self, bytes: &[u8], most: usize) {
        let mut stream = self.handle();
        for _ in 0..most {
            if stream.write_all(bytes).is_err() {
                return;
            }
        }
    }
}
