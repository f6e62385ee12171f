//! `wsbouncer check`: reads a file as `serve` would, and says all that is wrong with it.

use std::process::ExitCode;

use serde_json::json;

use super::{CheckArgs, OutputFormat, print, remark};
use crate::config;

pub fn run(args: &CheckArgs) -> ExitCode {
    match args.format {
        OutputFormat::Human => for_people(args),
        OutputFormat::Json => for_machines(args),
    }
}

fn for_machines(args: &CheckArgs) -> ExitCode {
    let (report, status) = match config::load(&args.file) {
        Ok(config) => {
            let (routes, keys) = (config.rules.routes.len(), config.rules.keys.len());
            let warnings = config.warnings.as_json();
            (json!({ "ok": true, "routes": routes, "keys": keys, "problems": [], "warnings": warnings }), 0)
        }
        Err(problems) => (json!({ "ok": false, "problems": problems.as_json(), "warnings": [] }), 2),
    };
    if print(&format!("{report}\n")).is_err() { ExitCode::FAILURE } else { ExitCode::from(status) }
}

fn for_people(args: &CheckArgs) -> ExitCode {
    let file = &args.file;
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
