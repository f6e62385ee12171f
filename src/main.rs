//! The life of the process: arguments, log, configuration, bind, announce, run, drain, exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing::error;

use wsbouncer::cli::{self, Cli, Command, ServeArgs};
use wsbouncer::config;
use wsbouncer::server::{Server, signals};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Probe(args) => cli::probe::run(&args),
        Command::Key(command) => cli::key::run(&command),
        Command::Demo(args) => {
            args.log.init();
            on_runtime(cli::demo::run(&args))
        }
        Command::Schema => cli::schema::run(),
        Command::Check(args) => cli::check::run(&args),
        Command::Explain(args) => cli::explain::run(&args),
    }
}

fn serve(args: &ServeArgs) -> ExitCode {
    args.log.init();
    forbid_core_dumps();
    let config = match config::load(&args.config) {
        Ok(config) => config,
        Err(problems) => {
            // All of them, each with its place and a way out.
            let _ = writeln!(std::io::stderr(), "{problems}");
            return ExitCode::from(2);
        }
    };
    on_runtime(async {
        let (stop, hurry) = match signals() {
            Ok(signals) => signals,
            Err(error) => return cannot_start(&error),
        };
        match Server::bind(args.config.clone(), config) {
            Ok(server) => match server.run(stop, hurry).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    error!(%error, "stopped");
                    ExitCode::FAILURE
                }
            },
            Err(error) => cannot_start(&error),
        }
    })
}

/// The memory of this process holds credentials that are being looked at. A kernel that hands crashes to a program does so
/// all the same, and tells it this limit.
fn forbid_core_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

fn on_runtime(process: impl Future<Output = ExitCode>) -> ExitCode {
    // For signals, reloads and the admin listener: connections have threads of their own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return cannot_start(&error),
    };
    let status = runtime.block_on(process);
    // Whatever still reads a file or a name at this point is not waited for.
    runtime.shutdown_background();
    status
}

fn cannot_start(error: &std::io::Error) -> ExitCode {
    error!(%error, "cannot start");
    ExitCode::FAILURE
}
