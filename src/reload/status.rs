//! How reloads went.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::UnixTime;
use crate::proxy::Proxy;

/// How the last reload went, for whoever asks.
#[derive(Debug, Clone)]
pub struct Status {
    pub ok: bool,
    pub at: UnixTime,
    pub error: Option<String>,
    /// Fields of the file that differ from what runs and need a restart.
    pub restart_needed: Vec<&'static str>,
    /// What the rules in force were made of.
    pub files: Arc<[PathBuf]>,
    /// The latest attempts, the newest first. The start is the first of all.
    pub history: VecDeque<Attempt>,
}

/// One load of the files.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub at: UnixTime,
    /// What was wrong, counted; 0 where the files were taken over.
    pub problems: usize,
    pub routes: usize,
    pub keys: usize,
    pub tunnels_ended: usize,
    /// Whether the files said something else than before.
    pub changed: bool,
}

/// Attempts that are remembered.
const MAX_HISTORY: usize = 20;

impl Status {
    /// The start, which is no reload.
    pub fn first(files: Arc<[PathBuf]>, proxy: &Proxy) -> Self {
        let (at, rules) = (UnixTime::now(), proxy.rules.load());
        let first = Attempt {
            at,
            problems: 0,
            routes: rules.routes.len(),
            keys: rules.keys.len(),
            tunnels_ended: 0,
            changed: true,
        };
        Self { ok: true, at, error: None, restart_needed: Vec::new(), files, history: VecDeque::from([first]) }
    }

    pub fn add(&mut self, attempt: Attempt) {
        self.history.truncate(MAX_HISTORY - 1);
        self.history.push_front(attempt);
    }
}
