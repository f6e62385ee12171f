//! `wsbouncer schema`: the file's JSON Schema, for editors.

use std::process::ExitCode;

use super::print;
use crate::config;

pub fn run() -> ExitCode {
    let schema = serde_json::to_string_pretty(&config::json_schema()).unwrap_or_default();
    if print(&format!("{schema}\n")).is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
