//! The command line: what may be typed, and the help that explains it. One file a command; `serve` is `main` itself.

pub mod check;
pub mod demo;
mod echo;
pub mod explain;
mod help;
pub mod key;
pub mod probe;
mod request;
pub mod schema;

use std::fmt;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::help::{CHECK, DEMO, EXPLAIN, KEY_HASH, KEY_NEW, OVERVIEW, PROBE, SCHEMA, SEE_HELP, SERVE};

/// A reverse proxy that authenticates WebSocket upgrades.
///
/// wsbouncer stands in front of a WebSocket service that has no login of its own. It lets a handshake through only
/// when it carries a key that the YAML file knows: in a header, or in the subprotocol list, where a browser can put
/// it. Everything else is refused before the service hears of it. Editing the file adds, rotates and revokes keys
/// while connections are open.
#[derive(Debug, Parser)]
#[command(name = "wsbouncer", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = SEE_HELP, after_long_help = OVERVIEW)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy that a YAML file describes.
    ///
    /// Opens the addresses in the file and serves until it is told to stop. The file and every file that it names
    /// are watched: a change is in force within a second, without a restart, and connections that keep their right
    /// do not notice. Connections of a key that is gone are closed with 4401. A file that has a fault changes
    /// nothing; the fault is in the log, on /readyz and in the metrics.
    #[command(after_long_help = SERVE)]
    Serve(ServeArgs),

    /// Check a YAML file, and say everything that is wrong with it.
    ///
    /// Reads the file as `serve` would, with all the files that it names, and opens no port. Every fault is printed
    /// to stderr with file, line, column and a way out; so are warnings, such as for a secret in plain text. When
    /// the file is good, one line on stdout says so.
    #[command(after_long_help = CHECK)]
    Check(CheckArgs),

    /// Say what would become of a request, step by step, and what would let it in.
    ///
    /// Walks one request through a file, offline, by the very code that decides in the proxy. Nothing is dialled and
    /// nothing is logged. Secrets are not printed. The request is described by flags, pasted as it was sent, or taken
    /// out of a curl command.
    #[command(after_long_help = EXPLAIN)]
    Explain(ExplainArgs),

    /// Make a key, or the digest of a secret that you have.
    #[command(subcommand, arg_required_else_help = true)]
    Key(KeyCommand),

    /// Ask a running wsbouncer whether it is ready, or open a WebSocket through it.
    ///
    /// For http://, one GET, by default of the admin address' /readyz. Needs no shell and no curl, and so can be the
    /// health check of a container. Connecting may take 2 seconds, the whole of it 5. For ws://, a handshake, then a
    /// Ping and its Pong, or a message and its echo: says what was negotiated and how long each of it took, or why it
    /// was refused.
    #[command(after_long_help = PROBE)]
    Probe(ProbeArgs),

    /// Print a JSON Schema of the YAML file, with which an editor completes it and marks mistakes.
    ///
    /// Names and forms, and what the reference says of each field. What does not fit together is for `check` to say.
    #[command(after_long_help = SCHEMA)]
    Schema,

    /// Try it: the real proxy, a built-in echo service behind it, and lines to paste.
    ///
    /// Writes a YAML file with a fresh key to a temporary directory and runs the proxy from it, exactly as `serve`
    /// would. Prints the key, the path of the file, and lines for the browser's console, for wscat, websocat and
    /// curl. Edit the file while it runs, and watch the key being revoked. Everything is removed at the end.
    #[command(after_long_help = DEMO)]
    Demo(DemoArgs),
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a fresh key, and the YAML lines that let it in.
    ///
    /// The key is printed once and stored nowhere. The YAML holds only its SHA-256, so that whoever reads the file
    /// cannot open a connection with it.
    #[command(after_long_help = KEY_NEW)]
    New(KeyNewArgs),

    /// Read a secret from stdin, and print its SHA-256 as the YAML wants it.
    ///
    /// For secrets that exist already. Reads one line; the newline at its end does not belong to the secret.
    /// Secrets are never taken from the command line, where other users and the shell's history see them.
    #[command(after_long_help = KEY_HASH)]
    Hash,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The YAML file that says where to listen, who may come in and where to
    #[arg(short, long, value_name = "FILE", env = "WSBOUNCER_CONFIG")]
    pub config: PathBuf,

    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The YAML file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Lines for people on stderr, or one JSON object on stdout
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub format: OutputFormat,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The YAML file
    #[arg(short, long, value_name = "FILE", env = "WSBOUNCER_CONFIG")]
    pub config: PathBuf,

    /// Where the client dials: ws://HOST/PATH
    #[arg(long, value_name = "URL", required_unless_present_any = ["request", "curl"])]
    pub url: Option<String>,

    /// A header, as "Name: value"; may be given several times
    #[arg(short = 'H', long, value_name = "HEADER", requires = "url")]
    pub header: Vec<String>,

    /// A subprotocol that is offered, in order; may be given several times
    #[arg(long, value_name = "ITEM", requires = "url")]
    pub subprotocol: Vec<String>,

    /// The Origin that a browser would send
    #[arg(long, value_name = "ORIGIN", requires = "url")]
    pub origin: Option<String>,

    /// The method, where it is not GET
    #[arg(long, value_name = "METHOD", requires = "url")]
    pub method: Option<String>,

    /// A plain HTTP request rather than a WebSocket handshake
    #[arg(long, requires = "url")]
    pub plain: bool,

    /// A file with the request's head as it was sent; - for stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["url", "curl"])]
    pub request: Option<PathBuf>,

    /// A curl command, in quotes
    #[arg(long, value_name = "COMMAND", conflicts_with = "url")]
    pub curl: Option<String>,

    /// The address that the client connects from
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub from: IpAddr,

    /// Lines for people, or one JSON object
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub format: OutputFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    Human,
    Json,
}

#[derive(Debug, Args)]
pub struct KeyNewArgs {
    /// The key's name: what logs, metrics and the service behind see. Never secret. 1 to 128 visible ASCII
    /// characters other than quotes and the backslash
    #[arg(long, value_name = "NAME", value_parser = key::parse_id)]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// What to GET, as http://; or where to open a WebSocket, as ws://
    #[arg(default_value = "http://127.0.0.1:9901/readyz", value_parser = probe::Target::parse)]
    pub url: probe::Target,

    #[command(flatten)]
    pub socket: Option<SocketArgs>,
}

/// For ws:// only.
#[derive(Debug, Default, Args)]
pub struct SocketArgs {
    /// The environment variable that holds the key
    #[arg(long, value_name = "NAME")]
    pub key_env: Option<String>,

    /// The file that holds the key, in one line
    #[arg(long, value_name = "PATH", conflicts_with = "key_env")]
    pub key_file: Option<PathBuf>,

    /// The header that carries the key, where it is not X-Api-Key; in Authorization it becomes "Bearer KEY"
    #[arg(long, value_name = "NAME", value_parser = probe::header)]
    pub header: Option<String>,

    /// Offer the key as a subprotocol, behind this one
    #[arg(long, value_name = "MARKER", value_parser = probe::token, conflicts_with = "header")]
    pub subprotocol_pair: Option<String>,

    /// A subprotocol to offer, in order; may be given several times
    #[arg(long, value_name = "ITEM", value_parser = probe::token)]
    pub subprotocol: Vec<String>,

    /// The Origin that a browser would send
    #[arg(long, value_name = "ORIGIN", value_parser = probe::value)]
    pub origin: Option<String>,

    /// The Host to ask for, where it is not the one of the URL
    #[arg(long, value_name = "HOST", value_parser = probe::value)]
    pub host: Option<String>,

    /// Send a text message, and want it back; without this: a Ping
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true, default_missing_value = "wsbouncer probe")]
    pub echo: Option<String>,

    /// How long all of it may take, such as 500ms; 5s if not said
    #[arg(long, value_name = "TIME", value_parser = probe::timeout)]
    pub timeout: Option<Duration>,

    /// Lines for people, or one JSON object on stdout; human if not said
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<OutputFormat>,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where the proxy listens, as IP:PORT; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = parse_listen)]
    pub listen: SocketAddr,

    #[command(flatten)]
    pub log: LogArgs,
}

/// How to log; always to stderr.
#[derive(Debug, Clone, Copy, Args)]
pub struct LogArgs {
    /// Lines for people, or one JSON object a line
    #[arg(long, value_name = "FORMAT", env = "WSBOUNCER_LOG_FORMAT", default_value = "human", ignore_case = true)]
    pub log_format: LogFormat,

    /// The least important events that are still logged
    #[arg(long, value_name = "LEVEL", env = "WSBOUNCER_LOG", default_value = "info", ignore_case = true)]
    pub log_level: LogLevel,
}

impl LogArgs {
    /// From here on, events are written.
    pub fn init(&self) {
        crate::log::init(self.log_format == LogFormat::Json, self.log_level.into());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Human,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080; port 0 takes any free one".into())
}

/// What a command is for goes to stdout. `print!` would panic when the reader is gone, as in `| head -1`.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// What a person should know besides goes to stderr; when nobody listens there, there is nobody to tell.
fn remark(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn definitions_agree() {
        Cli::command().debug_assert();
    }

    /// clap wraps longer lines where it likes, and an example that is broken in two cannot be pasted.
    #[test]
    fn help_fits_a_terminal() {
        for text in [OVERVIEW, SERVE, CHECK, EXPLAIN, KEY_NEW, KEY_HASH, PROBE, SCHEMA, DEMO] {
            for line in text.lines() {
                assert!(line.len() <= 88, "{} characters: {line}", line.len());
            }
        }
    }

    #[test]
    fn wrong_usage_is_exit_code_2() {
        for line in ["wsbouncer", "wsbouncer probe ftp://x", "wsbouncer key new --id", "wsbouncer demo --listen 8080"] {
            let error = Cli::try_parse_from(line.split(' ')).map(|_| ()).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
