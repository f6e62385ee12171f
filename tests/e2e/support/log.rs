//! What the binary writes: its two streams line by line, and the lines of the JSON log.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// Standard error and standard output, as far as they have come.
#[derive(Default)]
pub struct Log {
    pub err: Mutex<Vec<String>>,
    pub out: Mutex<Vec<String>>,
}

impl Log {
    /// Reads to the end, in a thread of its own.
    pub fn follow(self: &Arc<Self>, from: impl Read + Send + 'static, to: fn(&Self) -> &Mutex<Vec<String>>) {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                to(&log).lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }
}

/// One line of the JSON log.
#[derive(Debug, Clone)]
pub struct LogLine(Value);

impl LogLine {
    #[track_caller]
    pub fn parse(line: &str) -> Self {
        Self(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
    }

    pub fn is(&self, message: &str) -> bool {
        self.0["message"] == message
    }

    /// A field as text; empty where there is none.
    pub fn get(&self, field: &str) -> String {
        match &self.0[field] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self.get(field).parse().unwrap_or_else(|_| panic!("{field} is no number in {}", self.0))
    }
}
