//! What came of a handshake, for people and for machines.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::secret::Secret;

/// Makes printable what the other side said: in one line, not without end, and without the key.
#[derive(Clone)]
pub struct Cleaner(Option<Arc<Secret>>);

/// In characters. A detail of ours is shorter.
const MAX_TEXT: usize = 1000;

impl Cleaner {
    pub fn new(key: Option<Arc<Secret>>) -> Self {
        Self(key)
    }

    pub fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if let Some(key) = &self.0 {
            let key = String::from_utf8_lossy(key.as_bytes());
            // Where it names its scheme, what stands behind that is the secret.
            for secret in [&*key, key.rsplit(' ').next().unwrap_or_default()] {
                if !secret.is_empty() {
                    text = text.replace(secret, "(the key)");
                }
            }
        }
        text.chars().take(MAX_TEXT).map(|letter| if letter.is_control() { '?' } else { letter }).collect()
    }
}

/// Why it did not end well.
pub enum Failure {
    /// By an answer other than 101, or by a Close.
    Refused(Refusal),
    /// The time is over.
    Late(String),
    /// No connection, or not what RFC 6455 has.
    Broken(String),
}

pub struct Refusal {
    /// The status of the answer; 101 where a Close came.
    pub status: u16,
    /// The code in the Close, if it was one (RFC 6455 section 7.4); 1005 for one without.
    pub close: Option<u16>,
    pub reason: String,
    pub detail: String,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Late("no answer in time".into()),
            io::ErrorKind::UnexpectedEof => Self::Broken("the connection ended before the answer".into()),
            _ => Self::Broken(error.to_string()),
        }
    }
}

pub struct Report {
    cleaner: Cleaner,
    pub status: Option<u16>,
    pub subprotocol: Option<String>,
    pub extensions: Option<String>,
    pub request_id: Option<String>,
    /// How long each phase took that came to its end.
    phases: Vec<(&'static str, Duration)>,
    /// The one that is under way.
    phase: &'static str,
    since: Instant,
    pub end: Result<(), Failure>,
}

impl Report {
    pub fn new(cleaner: Cleaner) -> Self {
        Self {
            cleaner,
            status: None,
            subprotocol: None,
            extensions: None,
            request_id: None,
            phases: Vec::new(),
            phase: "connect",
            since: Instant::now(),
            end: Ok(()),
        }
    }

    pub fn begin(&mut self, phase: &'static str) {
        self.phase = phase;
        self.since = Instant::now();
    }

    pub fn done(&mut self) {
        self.phases.push((self.phase, self.since.elapsed()));
    }

    /// The closed list of what it comes to.
    fn outcome(&self) -> &'static str {
        match self.end {
            Ok(()) => "well",
            Err(Failure::Refused(_)) => "refused",
            Err(Failure::Late(_)) => "late",
            Err(Failure::Broken(_)) => "failed",
        }
    }

    pub fn for_people(&self, url: &str) -> String {
        let clean = |text: &str| self.cleaner.clean(text);
        let mut text = format!("{}: {}", clean(url), self.outcome());
        match &self.end {
            Ok(()) => {}
            Err(Failure::Refused(refusal)) => {
                let by = refusal.close.map_or(refusal.status.to_string(), |code| format!("closed with {code}"));
                text.push_str(&format!(": {by} {}", clean(&refusal.reason)));
            }
            Err(Failure::Late(why) | Failure::Broken(why)) => {
                text.push_str(&format!(": {}: {}", self.phase, clean(why)));
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<13} {value}\n"));
        if let Err(Failure::Refused(Refusal { detail, .. })) = &self.end
            && !detail.is_empty()
        {
            line("detail", &clean(detail));
        }
        if let Some(status) = self.status {
            line("status", &status.to_string());
            if status == 101 {
                line("subprotocol", &self.subprotocol.as_deref().map_or("none".into(), clean));
                line("extensions", &self.extensions.as_deref().map_or("none".into(), clean));
            }
            line("X-Request-Id", &self.request_id.as_deref().map_or("none".into(), clean));
        }
        for (phase, took) in &self.phases {
            line(phase, &format!("{:.1} ms", took.as_secs_f64() * 1000.0));
        }
        text
    }

    pub fn for_machines(&self, url: &str) -> String {
        let clean = |text: &str| self.cleaner.clean(text);
        let maybe = |text: &Option<String>| text.as_deref().map(clean);
        let millis = |took: &Duration| (took.as_secs_f64() * 1e6).round() / 1000.0;
        let phases: Map<String, Value> =
            self.phases.iter().map(|(phase, took)| ((*phase).to_owned(), json!(millis(took)))).collect();
        let mut report = json!({
            "url": clean(url),
            "outcome": self.outcome(),
            "status": self.status,
            "subprotocol": maybe(&self.subprotocol),
            "extensions": maybe(&self.extensions),
            "request_id": maybe(&self.request_id),
            "took_ms": phases,
        });
        match &self.end {
            Ok(()) => {}
            Err(Failure::Refused(refusal)) => {
                report["close"] = json!(refusal.close);
                report["reason"] = json!(clean(&refusal.reason));
                report["detail"] = json!(clean(&refusal.detail));
            }
            Err(Failure::Late(why) | Failure::Broken(why)) => {
                report["during"] = json!(self.phase);
                report["error"] = json!(clean(why));
            }
        }
        format!("{report}\n")
    }
}
