//! `wsbouncer check`: reads a file as `serve` would, and says all that is wrong with it.

use std::path::Path;
use std::process::ExitCode;

use super::{print, remark};
use crate::config;

pub fn run(file: &Path) -> ExitCode {
    match config::load(file) {
        Ok(config) => {
            if config.warnings.len() > 0 {
                remark(&config.warnings);
            }
            let (routes, keys) = (config.rules.routes.len(), config.rules.keys.len());
            let line = format!("{}: ok ({routes} routes, {keys} keys)\n", file.display());
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
