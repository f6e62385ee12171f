//! `probe`: is it there, and does it let in whom it should? One GET over a plain socket, which is the health check of
//! containers, run every few seconds beside the proxy; or one WebSocket handshake. It starts no runtime and ends within a
//! deadline whatever the other side does.

mod answer;
mod dial;
mod line;
mod offer;
mod report;
mod talk;
mod target;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use self::answer::{Answer, read_answer};
use self::line::{Line, too_late};
use self::offer::Offer;
pub use self::offer::{header, timeout, token, value};
use self::report::{Failure, Report};
pub use self::target::Target;
use super::{OutputFormat, ProbeArgs, SocketArgs, print, remark};

const CONNECT: Duration = Duration::from_secs(2);
const TOTAL: Duration = Duration::from_secs(5);
/// What notices its deadline by itself gets so long to say so.
const TO_SAY_SO: Duration = Duration::from_millis(200);

pub fn run(args: &ProbeArgs) -> ExitCode {
    match &args.socket {
        socket if args.url.is_socket => handshake(&args.url, socket.as_ref().unwrap_or(&SocketArgs::default())),
        Some(_) => wrong_usage("options are for ws:// URLs; http:// takes none"),
        None => health(&args.url),
    }
}

fn wrong_usage(why: &str) -> ExitCode {
    remark(format_args!("error: {why}"));
    ExitCode::from(2)
}

fn health(url: &Target) -> ExitCode {
    match get(url.clone()) {
        Ok(answer) if answer.status == 200 => match print(&answer.to_text()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Ok(answer) => {
            remark(answer.to_text().trim_end());
            ExitCode::FAILURE
        }
        Err(error) => {
            remark(format_args!("error: {}: {error}", url.text));
            ExitCode::FAILURE
        }
    }
}

/// Looking up a name cannot be given a deadline, so all of it runs beside a clock.
fn get(target: Target) -> io::Result<Answer> {
    let deadline = Instant::now() + TOTAL;
    beside_a_clock(TOTAL, move || exchange(&target, deadline))?.unwrap_or_else(|| Err(too_late()))
}

/// What the work comes to, unless that takes longer.
fn beside_a_clock<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (done, result) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        // Nobody listens any more when the time is over.
        let _ = done.send(work());
    })?;
    Ok(result.recv_timeout(limit).ok())
}

fn exchange(target: &Target, deadline: Instant) -> io::Result<Answer> {
    let mut line = Line::open(target, CONNECT, deadline)?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: wsbouncer-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        target.path, target.authority
    );
    line.write_all(request.as_bytes())?;
    read_answer(line)
}

fn handshake(url: &Target, args: &SocketArgs) -> ExitCode {
    let offer = match Offer::new(url, args) {
        Ok(offer) => offer,
        Err(why) => return wrong_usage(&why),
    };
    let (limit, echo) = (args.timeout.unwrap_or(TOTAL), args.echo.clone());
    let deadline = Instant::now() + limit;
    let mut late = Report::new(offer.cleaner());
    let target = url.clone();
    let report = beside_a_clock(limit + TO_SAY_SO, move || dial::run(&target, &offer, echo.as_deref(), deadline));
    let report = match report {
        Ok(Some(report)) => report,
        // Only the resolver knows no deadline, and its end is not awaited.
        Ok(None) => {
            late.end = Err(Failure::Late("the name was not looked up in time".into()));
            late
        }
        Err(error) => {
            late.end = Err(error.into());
            late
        }
    };
    let printed = match args.format {
        Some(OutputFormat::Json) => print(&report.for_machines(&url.text)),
        Some(OutputFormat::Human) | None if report.end.is_ok() => print(&report.for_people(&url.text)),
        Some(OutputFormat::Human) | None => {
            remark(report.for_people(&url.text).trim_end());
            Ok(())
        }
    };
    if report.end.is_ok() && printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
