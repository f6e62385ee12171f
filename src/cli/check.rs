//! `wsbouncer check`: reads a file as `serve` would, and says all that is wrong with it.

use std::path::Path;
use std::process::ExitCode;

use super::{print, remark};
use crate::config;

pub fn run(file: &Path) -> ExitCode {
    match config::load(file) {
        Ok(config) => {
            if !config.warnings.is_empty() {
                remark(&config.warnings);
            }
            let routes = counted(config.rules.routes.len(), "route");
            let keys = counted(config.rules.keys.len(), "key");
            let line = format!("{}: ok ({routes}, {keys})\n", file.display());
            if print(&line).is_err() {
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(problems) => {
            remark(&problems);
            ExitCode::from(2)
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
