//! Large frames as fast as they go.

use std::io;
use std::rc::Rc;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::Direction;
use crate::client::{self, Answer, Target, fault};
use crate::drive::{self, Plan, Run, Worker};
use crate::frame;

/// What one read may bring.
const BUFFER: usize = 256 * 1024;

pub(crate) fn run(plan: &Plan, target: &Target, direction: Direction, size: usize) -> io::Result<()> {
    let (name, path) = match direction {
        Direction::Down => ("down", format!("/source?size={size}")),
        Direction::Up => ("up", "/sink".to_owned()),
        Direction::Both => ("both", format!("/source?size={size}")),
    };
    let target = target.with_path(&path);
    let details = json!({ "size": size, "direction": name });
    drive::tasks(plan, details, |worker| connection(worker, target.clone(), direction, size))
}

async fn connection(worker: Rc<Worker>, target: Target, direction: Direction, size: usize) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let opening = async {
        let mut stream = client::connect(&target).await?;
        let answer = client::upgrade(&mut stream, &target.handshake(), &mut buffer).await?;
        Ok((stream, answer))
    };
    let (mut stream, answer) = worker.run.opened(opening.await)?;
    worker.run.begin().await;
    let (reader, writer) = stream.split();
    let run = &worker.run;
    match direction {
        Direction::Down => take(run, reader, buffer, &answer, size).await,
        Direction::Up => give(run, writer, size).await,
        Direction::Both => tokio::select! {
            end = take(run, reader, buffer, &answer, size) => end,
            end = give(run, writer, size) => end,
        },
    }
}

/// Reads frames of one size and checks that each begins where the last one ends.
async fn take(
    run: &Run,
    mut reader: ReadHalf<'_>,
    mut buffer: Vec<u8>,
    answer: &Answer,
    size: usize,
) -> io::Result<()> {
    let frame = frame::frame(frame::BINARY, &vec![0; size], None).len();
    let mut within = 0;
    let (mut from, mut to) = (answer.head, answer.read);
    loop {
        let mut at = from;
        while at < to {
            if within == 0 && buffer[at] != frame::BINARY {
                return Err(fault("a frame does not begin where the last one ends"));
            }
            let step = (frame - within).min(to - at);
            within = (within + step) % frame;
            at += step;
        }
        run.passed(to - from);
        from = 0;
        to = reader.read(&mut buffer).await?;
        if to == 0 {
            return Err(fault("the connection ended"));
        }
    }
}

async fn give(run: &Run, mut writer: WriteHalf<'_>, size: usize) -> io::Result<()> {
    let frame = frame::frame(frame::BINARY, &vec![0x5a; size], Some(frame::MASK));
    loop {
        let mut rest = &frame[..];
        while !rest.is_empty() {
            let count = writer.write(rest).await?;
            run.passed(count);
            rest = &rest[count..];
        }
    }
}
