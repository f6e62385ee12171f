//! `wsbouncer explain`: walks a request through a file, offline, by the code that decides, and says what would let it in.

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use serde_json::json;

use super::request::{self, Described};
use super::{ExplainArgs, OutputFormat, print, remark};
use crate::config;
use crate::denial::{Denial, Reason};
use crate::head;
use crate::limit::Space;
use crate::peer::Peer;
use crate::proxy::Proxy;
use crate::rehearsal::Would;
use crate::trail::Step;

pub fn run(args: &ExplainArgs) -> ExitCode {
    let config = match config::load(&args.config) {
        Ok(config) => config,
        Err(problems) => {
            remark(&problems);
            return ExitCode::from(2);
        }
    };
    let bytes = match request(args) {
        Ok(bytes) => bytes,
        Err(why) => {
            remark(format!("this describes no request: {why}"));
            return ExitCode::from(2);
        }
    };
    let proxy = Proxy::new(config.rules, Space::ENDLESS);
    let story = Story::of(&proxy, SocketAddr::new(args.from, 0), bytes);
    let text = match args.format {
        OutputFormat::Human => story.for_people(&proxy),
        OutputFormat::Json => story.for_machines(&proxy),
    };
    match print(&text) {
        Ok(()) if story.outcome.is_ok() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The raw head that the flags describe.
fn request(args: &ExplainArgs) -> Result<Vec<u8>, String> {
    if let Some(path) = &args.request {
        let mut bytes = Vec::new();
        let read = if path.as_os_str() == "-" {
            std::io::stdin().lock().take(64 * 1024).read_to_end(&mut bytes)
        } else {
            std::fs::File::open(path).and_then(|file| file.take(64 * 1024).read_to_end(&mut bytes))
        };
        read.map_err(|error| format!("{}: {error}", path.display()))?;
        return Ok(request::pasted(&bytes));
    }
    if let Some(command) = &args.curl {
        return request::of_curl(command).map(|described| described.head());
    }
    let url = args.url.as_deref().ok_or("give it by --url, --request or --curl")?;
    let described = Described {
        method: args.method.clone(),
        url: url.to_owned(),
        headers: args.header.clone(),
        upgrade: !args.plain,
        subprotocols: args.subprotocol.clone(),
        origin: args.origin.clone(),
    };
    described.check()?;
    Ok(described.head())
}

/// What became of a request.
struct Story {
    first_line: String,
    steps: Vec<Step>,
    outcome: Result<Would, Denial>,
}

impl Story {
    /// The head is read and vetted as a listener does it.
    fn of(proxy: &Proxy, from: SocketAddr, bytes: Vec<u8>) -> Self {
        let first = bytes.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
        // Without its query, which may hold a secret.
        let first_line = crate::log::printable(first);
        let cut = first_line.find('?').map_or(&*first_line, |at| &first_line[..at]);
        let first_line = cut.trim_end_matches(" HTTP/1.1").to_owned();
        let parts = head::whole(bytes);
        let (steps, outcome) = match parts {
            Ok(parts) => proxy.rehearse(Peer::new(from), parts),
            Err(denial) => (Vec::new(), Err(denial)),
        };
        Self { first_line, steps, outcome }
    }

    fn for_people(&self, proxy: &Proxy) -> String {
        let mut text = format!("{}\n", self.first_line);
        for (at, step) in self.steps.iter().enumerate() {
            text.push_str(&format!("  {} {:<11} {}\n", at + 1, step.name, step.says));
        }
        match &self.outcome {
            Ok(would) => text.push_str(&format!("let in: {}\n", Self::says(would))),
            Err(denial) => {
                let status = denial.status().as_u16();
                text.push_str(&format!("refused: {status} {}\n", denial.reason.word()));
                text.push_str(&format!("  the client is told    {}\n", denial.detail));
                if !denial.cause.is_empty() {
                    text.push_str(&format!("  the log says besides  {}\n", denial.cause));
                }
                text.push_str(&format!("  to let it in          {}\n", way_in(denial, proxy)));
            }
        }
        text
    }

    fn for_machines(&self, proxy: &Proxy) -> String {
        let steps: Vec<_> = self.steps.iter().map(|step| json!({ "step": step.name, "says": step.says })).collect();
        let outcome = match &self.outcome {
            Ok(would) => json!({ "let_in": true, "says": Self::says(would) }),
            Err(denial) => json!({
                "let_in": false,
                "status": denial.status().as_u16(),
                "reason": denial.reason.word(),
                "detail": denial.detail,
                "cause": denial.cause,
                "key": denial.key.as_deref(),
                "to_let_it_in": way_in(denial, proxy),
            }),
        };
        format!("{}\n", json!({ "request": self.first_line, "steps": steps, "outcome": outcome }))
    }

    fn says(would: &Would) -> String {
        match would {
            Would::Dial(route, head) => {
                format!("{} would be dialled, with these headers: {}", route.upstream.name, names(head))
            }
            Would::Forward(route) => format!("it would be forwarded to {}", route.upstream.name),
            Would::Ask => "the handshake would be completed, and the key looked for in the first message".into(),
            Would::Answer(answer) => {
                let line = answer.as_bytes().split(|byte| *byte == b'\r').next().unwrap_or_default();
                format!("the counter for tickets would answer {}", crate::log::printable(line))
            }
        }
    }
}

/// Names of the headers that the upstream would see: values may be secrets of the client, or of the file.
fn names(head: &[u8]) -> String {
    let lines = head.split(|byte| *byte == b'\n').skip(1);
    let names = lines.filter_map(|line| line.split(|byte| *byte == b':').next().filter(|name| name.len() > 1));
    names.map(crate::log::printable).collect::<Vec<_>>().join(", ")
}

/// What would have let it in.
fn way_in(denial: &Denial, proxy: &Proxy) -> String {
    let key = denial.key.as_deref().unwrap_or("of the client");
    match denial.reason {
        Reason::NoRoute => {
            let rules = proxy.rules.load();
            let routes: Vec<String> = rules.routes.all().take(20).map(|route| route.to_string()).collect();
            format!("ask for one of these routes, or add one: {}", routes.join("; "))
        }
        Reason::MissingCredential => "send a key in one of the places above".into(),
        Reason::InvalidCredential if denial.cause.contains("disabled") => {
            format!("take disabled: true away from the key {key}")
        }
        Reason::InvalidCredential if denial.cause.contains("not valid yet") => {
            format!("wait for not_before of the key {key}, or change it")
        }
        Reason::InvalidCredential if denial.cause.contains("ticket") => "get a fresh ticket, and show it once".into(),
        Reason::InvalidCredential if denial.cause.contains("user name") => {
            format!("send the key's id as user name: {key}")
        }
        Reason::InvalidCredential => {
            "send a secret of one of the keys; `wsbouncer key hash` makes the line for one that should be added".into()
        }
        Reason::ExpiredCredential => format!("give the key {key} a new secret, or a later valid_until and expires_at"),
        Reason::NotAllowedOnRoute => format!("add the route to routes of the key {key}, or leave its routes out"),
        Reason::OriginNotAllowed => "add the page's origin to allowed_origins of the route".into(),
        Reason::ConflictingCredentials => "send exactly one credential, in one place".into(),
        Reason::UpgradeRequired => "ask for a WebSocket; or write http: forward on the route for plain requests".into(),
        Reason::AmbiguousPath => "send the path in its plain form".into(),
        Reason::TooManyConnections | Reason::TooManyAttempts | Reason::AtCapacity => "raise the limit".into(),
        Reason::BadHandshake
        | Reason::BadFirstMessage
        | Reason::BodyTooLarge
        | Reason::HeadTooLarge
        | Reason::TargetTooLong
        | Reason::RequestTimeout
        | Reason::AddressNotAllowed
        | Reason::UpstreamUnreachable
        | Reason::UpstreamBadHandshake
        | Reason::UpstreamTimeout
        | Reason::Draining => "send the request as the detail says".into(),
    }
}
